#include "tiers/nvme/purge_list.h"

#include <algorithm>
#include <tuple>
#include <vector>

namespace kavern::tiers {
namespace {

constexpr NamespaceFingerprint kAll = {};

}  // namespace

void PurgeList::Add(const NamespaceFingerprint& fingerprint, std::uint64_t sequence) {
  if (sequences_.size() >= kEntriesMax && !sequences_.contains(fingerprint)) Shorten();
  std::uint64_t& known = sequences_[fingerprint];
  known = std::max(known, sequence);
}

void PurgeList::Shorten() {
  std::vector<std::uint64_t> all;
  all.reserve(sequences_.size());
  for (const auto& [fingerprint, sequence] : sequences_) all.push_back(sequence);
  const auto quarter = all.begin() + static_cast<std::ptrdiff_t>(all.size() / 4);
  std::nth_element(all.begin(), quarter, all.end());
  const std::uint64_t floor = *quarter;
  absl::erase_if(sequences_, [&](const auto& entry) { return entry.second <= floor; });
  sequences_[kAll] = floor;
}

bool PurgeList::IsVoid(const NamespaceFingerprint& fingerprint, std::uint64_t sequence) const {
  for (const NamespaceFingerprint& whose : {fingerprint, kAll}) {
    const auto found = sequences_.find(whose);
    if (found != sequences_.end() && sequence <= found->second) return true;
  }
  return false;
}

void PurgeList::Merge(const disk::PurgePage& page) {
  for (std::uint64_t i = 0; i < page.count; ++i) {
    std::uint64_t& known = sequences_[NamespaceFingerprint{page.entries[i].fingerprint}];
    known = std::max(known, page.entries[i].sequence);
  }
  // Pages of two generations may name more than one of them could.
  while (sequences_.size() > kEntriesMax) Shorten();
}

void PurgeList::Write(const disk::Uuid& store, std::span<std::byte> pages) const {
  std::vector<disk::PurgePage::Entry> entries;
  entries.reserve(sequences_.size());
  for (const auto& [fingerprint, sequence] : sequences_) {
    entries.push_back({fingerprint.bytes, sequence});
  }
  std::sort(entries.begin(), entries.end(), [](const auto& a, const auto& b) {
    return std::tie(a.sequence, a.fingerprint) < std::tie(b.sequence, b.fingerprint);
  });
  auto entry = entries.begin();
  for (std::uint64_t i = 0; i < disk::kPurgePages; ++i) {
    disk::PurgePage page = {};
    page.store = store;
    for (; page.count < disk::PurgePage::kEntries && entry != entries.end(); ++entry) {
      page.entries[page.count++] = *entry;
    }
    disk::Seal(page);
    disk::WritePage(page, pages.subspan(i * kDiskPage, kDiskPage));
  }
}

std::uint64_t PurgeList::last_sequence() const {
  std::uint64_t last = 0;
  for (const auto& [fingerprint, sequence] : sequences_) last = std::max(last, sequence);
  return last;
}

}  // namespace kavern::tiers
