#include "tiers/nvme/disk_format.h"

#include <algorithm>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "base/copy_and_checksum.h"
#include "base/kv_layout.h"

namespace kavern::tiers::disk {
namespace {

constexpr std::array<char, 8> kSuperblockMagic = {'K', 'V', 'R', 'N', 'D', 'I', 'S', 'K'};
constexpr std::array<char, 8> kPurgeMagic = {'K', 'V', 'R', 'N', 'P', 'U', 'R', 'G'};
constexpr std::array<char, 8> kSegmentMagic = {'K', 'V', 'R', 'N', 'S', 'E', 'G', 'M'};
constexpr std::array<char, 8> kCatalogMagic = {'K', 'V', 'R', 'N', 'C', 'T', 'L', 'G'};

template <typename Header>
std::uint32_t CrcOf(Header header) {
  header.crc = 0;
  return Crc32c(std::as_bytes(std::span(&header, 1)));
}

template <typename Header>
absl::StatusOr<Header> Parse(std::span<const std::byte> bytes, const std::array<char, 8>& magic,
                             const char* what) {
  Header header;
  if (bytes.size() < sizeof(header)) {
    return absl::DataLossError(
        absl::StrCat(what, ": ", bytes.size(), " bytes, expected ", sizeof(header)));
  }
  std::memcpy(&header, bytes.data(), sizeof(header));
  if (header.magic != magic) return absl::DataLossError(absl::StrCat(what, ": not one"));
  if (header.crc != CrcOf(header)) {
    return absl::DataLossError(absl::StrCat(what, ": its checksum is wrong"));
  }
  if (header.version != kFormatVersion) {
    return absl::FailedPreconditionError(absl::StrCat(what, ": is of format ", header.version,
                                                      ", this program reads ", kFormatVersion));
  }
  return header;
}

bool IsPages(std::uint64_t bytes) {
  return bytes > 0 && bytes % kDiskPage == 0;
}

}  // namespace

Superblock Superblock::Make(const Uuid& store, std::uint32_t device, std::uint32_t device_count,
                            std::uint64_t segment_bytes, std::uint64_t segment_count) {
  Superblock made = {kSuperblockMagic, kFormatVersion, 0, store, device, device_count,
                     segment_bytes,    segment_count};
  made.crc = CrcOf(made);
  return made;
}

SegmentHeader SegmentHeader::Make(const Uuid& store, std::uint32_t device, std::uint32_t segment,
                                  std::uint64_t slot_bytes, std::uint64_t epoch) {
  SegmentHeader made = {kSegmentMagic, kFormatVersion, 0,          store,
                        device,        segment,        slot_bytes, epoch};
  made.crc = CrcOf(made);
  return made;
}

CatalogMark CatalogMark::Make(const Uuid& store) {
  CatalogMark made = {kCatalogMagic, kFormatVersion, 0, store};
  made.crc = CrcOf(made);
  return made;
}

void Seal(SlotHeader& header) {
  header.magic = kSlotMagic;
  header.version = kFormatVersion;
  header.crc = CrcOf(header);
}

void Seal(PurgePage& page) {
  page.magic = kPurgeMagic;
  page.version = kFormatVersion;
  page.crc = CrcOf(page);
}

template <typename Header>
void WritePage(const Header& header, std::span<std::byte> page) {
  std::memcpy(page.data(), &header, sizeof(header));
  std::fill(page.begin() + sizeof(header), page.end(), std::byte{0});
}
template void WritePage(const Superblock& header, std::span<std::byte> page);
template void WritePage(const SegmentHeader& header, std::span<std::byte> page);
template void WritePage(const PurgePage& header, std::span<std::byte> page);
template void WritePage(const SlotHeader& header, std::span<std::byte> page);

absl::StatusOr<Superblock> ParseSuperblock(std::span<const std::byte> page) {
  auto parsed = Parse<Superblock>(page, kSuperblockMagic, "superblock");
  if (!parsed.ok()) return parsed;
  if (!IsPages(parsed->segment_bytes) || parsed->device >= parsed->device_count ||
      parsed->segment_count > UINT32_MAX) {
    return absl::DataLossError("superblock: a field is out of range");
  }
  return parsed;
}

absl::StatusOr<SegmentHeader> ParseSegment(std::span<const std::byte> page) {
  auto parsed = Parse<SegmentHeader>(page, kSegmentMagic, "segment");
  if (!parsed.ok()) return parsed;
  if (!IsPages(parsed->slot_bytes)) {
    return absl::DataLossError("segment: its slots are no whole pages");
  }
  return parsed;
}

absl::StatusOr<SlotHeader> ParseSlot(std::span<const std::byte> bytes) {
  auto parsed = Parse<SlotHeader>(bytes, kSlotMagic, "slot");
  if (!parsed.ok()) return parsed;
  if (parsed->part_count == 0 || parsed->part_count > KvLayout::kPartsMax ||
      parsed->part >= parsed->part_count || parsed->payload_bytes == 0) {
    return absl::DataLossError("slot: a field is out of range");
  }
  return parsed;
}

absl::StatusOr<PurgePage> ParsePurgePage(std::span<const std::byte> page) {
  auto parsed = Parse<PurgePage>(page, kPurgeMagic, "purge page");
  if (!parsed.ok()) return parsed;
  if (parsed->count > PurgePage::kEntries) {
    return absl::DataLossError("purge page: more entries than fit");
  }
  return parsed;
}

absl::StatusOr<CatalogMark> ParseCatalogMark(std::span<const std::byte> bytes) {
  return Parse<CatalogMark>(bytes, kCatalogMagic, "catalog's mark");
}

}  // namespace kavern::tiers::disk
