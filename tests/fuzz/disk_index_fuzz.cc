// Recovery's decisions: headers that parse, but say anything about each other. Whatever is adopted
// must leave an index whose recount agrees, that can be written to, and that can be emptied.
//
// What it does not check: that what is adopted is what was written.
#include <vector>

#include "fuzz_input.h"
#include "tiers/nvme/block_device.h"
#include "tiers/nvme/disk_index.h"

namespace {

using kavern::fuzz::Require;
using namespace kavern::tiers;  // NOLINT(google-build-using-namespace): a program of one file

constexpr std::uint64_t kSegmentBytes = 8 * kDiskPage;

// Few values, so that keys, places and parents meet.
kavern::BlockKey KeyOf(std::uint8_t n) {
  kavern::BlockKey key;
  key.bytes.fill(static_cast<std::uint8_t>(n % 8));
  return key;
}

void Adopt(kavern::fuzz::Input& input, DiskIndex& index) {
  while (!input.empty()) {
    const auto op = input.Take<std::uint8_t>();
    const SegmentId segment = {input.Take<std::uint8_t>() % 3U, input.Take<std::uint8_t>() % 5U};
    const std::uint64_t slot_bytes = (1 + input.Take<std::uint8_t>() % 9) * kDiskPage;
    const std::uint64_t epoch = input.Take<std::uint8_t>() % 3;
    if (op % 4 == 0) {
      index.AdoptSegment({segment, slot_bytes, epoch});
      continue;
    }
    DiskPart part;
    part.fingerprint.bytes.fill(static_cast<std::uint8_t>(1 + input.Take<std::uint8_t>() % 2));
    part.key = KeyOf(input.Take<std::uint8_t>());
    part.parent = KeyOf(input.Take<std::uint8_t>());
    part.part_count = 1 + input.Take<std::uint8_t>() % 3;
    part.part = input.Take<std::uint8_t>() % part.part_count;
    part.payload_bytes = 1 + input.Take<std::uint16_t>();
    part.sequence = input.Take<std::uint8_t>();
    const std::uint32_t position = input.Take<std::uint8_t>() % 10;
    index.AdoptPart({segment, position, slot_bytes, epoch}, part);
  }
}

// Such a block has no leaf below it that could be evicted first.
void RequireNoneIsItsOwnParent(const DiskIndex& index) {
  DiskIndex::Cursor cursor;
  for (DiskIndex::Found found = index.Next(&cursor); found.ns != nullptr;
       found = index.Next(&cursor)) {
    Require(found.ns->index.ParentKeyOf(found.block) != found.ns->index.KeyOf(found.block),
            "no block is its own parent");
  }
}

void WriteAndEmpty(DiskIndex& index) {
  for (std::uint8_t fingerprint = 1; fingerprint <= 2; ++fingerprint) {
    kavern::NamespaceFingerprint name;
    name.bytes.fill(fingerprint);
    DiskNamespace* ns = index.Find(name);
    if (ns == nullptr) continue;
    const kavern::BlockKey fresh = KeyOf(7);
    if (ns->index.Find(fresh) == kNoBlock) {
      const auto reservation = index.Reserve(*ns, fresh, name.RootKey());
      if (reservation.has_value()) {
        const std::vector<std::uint32_t> checksums(ns->slot_bytes.size(), 1);
        index.Commit(*ns, fresh, name.RootKey(), *reservation, checksums, 1000);
      }
    }
    Require(index.Audit().empty(), "a recount after a write agrees");
    std::vector<DiskPlace> places;
    index.DropAll(*ns, &places);
    index.Settle(name);
  }
  Require(index.used_bytes() == 0, "nothing is left of what was dropped");
  Require(index.Audit().empty(), "a recount of the empty index agrees");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  kavern::fuzz::Input input(data, size);
  DiskIndex::Options options;
  options.segments = {4, 4};
  options.segment_bytes = kSegmentBytes;
  options.on_evicted = [](const DiskNamespace&, const kavern::BlockKey&) {};
  options.new_epoch = [] { return std::uint64_t{77}; };
  DiskIndex index(std::move(options));
  Adopt(input, index);
  index.FinishAdoption();
  Require(index.Audit().empty(), "a recount of what was adopted agrees");
  RequireNoneIsItsOwnParent(index);
  WriteAndEmpty(index);
  return 0;
}
