// What is on disk, byte by byte: docs/DATA_FORMAT.md. Little endian, and every structure carries a
// checksum of itself.
//
// A device is a superblock page, a copy of it, and segments. A segment begins with a page that says
// how large its slots are; a slot is a page with its header and then the payload. Structures lie
// only where the superblock and the segment's page put them, and a slot's header must repeat the
// segment's random epoch: so payload, which clients choose, can never be taken for one.
#ifndef KAVERN_TIERS_NVME_DISK_FORMAT_H_
#define KAVERN_TIERS_NVME_DISK_FORMAT_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <type_traits>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/block_key.h"
#include "tiers/nvme/block_device.h"

namespace kavern::tiers::disk {

inline constexpr std::uint32_t kFormatVersion = 1;
inline constexpr std::uint64_t kSuperblockPages = 2;  // the second is a copy
inline constexpr std::uint64_t kSegmentsOffset = std::uint64_t{1} << 20;

using Uuid = std::array<std::uint8_t, 16>;

// Says whose the device is, and where its segments are.
struct Superblock {
  std::array<char, 8> magic;  // "KVRNDISK"
  std::uint32_t version;
  std::uint32_t crc;  // of the structure with 0 here
  Uuid store;         // all devices of one store have it, and the catalog
  std::uint32_t device;
  std::uint32_t device_count;
  std::uint64_t segment_bytes;
  std::uint64_t segment_count;

  static Superblock Make(const Uuid& store, std::uint32_t device, std::uint32_t device_count,
                         std::uint64_t segment_bytes, std::uint64_t segment_count);
};

// The first page of a segment. One that does not parse, or names another store, is a free segment.
struct SegmentHeader {
  std::array<char, 8> magic;  // "KVRNSEGM"
  std::uint32_t version;
  std::uint32_t crc;
  Uuid store;
  std::uint32_t device;
  std::uint32_t segment;
  std::uint64_t slot_bytes;  // payload room of one slot, without its header; a multiple of a page
  std::uint64_t epoch;       // random, new with each use of the segment: what was before is void

  static SegmentHeader Make(const Uuid& store, std::uint32_t device, std::uint32_t segment,
                            std::uint64_t slot_bytes, std::uint64_t epoch);
};

// One part of a block.
struct SlotHeader {
  std::array<char, 8> magic;  // "KVRNSLOT"
  std::uint32_t version;
  std::uint32_t crc;
  std::uint64_t epoch;   // the segment's
  std::uint64_t offset;  // of this header on its device
  std::array<std::uint8_t, 16> fingerprint;
  std::array<std::uint8_t, 16> key;
  std::array<std::uint8_t, 16> parent;  // the root key for a first block
  std::uint32_t part;
  std::uint32_t part_count;
  std::uint64_t payload_bytes;
  std::uint64_t sequence;     // of the store's writes: a purge voids all up to one
  std::uint32_t payload_crc;  // seeded by key and part, as everywhere
  std::uint32_t reserved;     // 0

  friend bool operator==(const SlotHeader&, const SlotHeader&) = default;
};

// What was deleted by its user. Pages of these lie between the superblocks and the segments, twice
// on every device.
struct PurgePage {
  static constexpr std::size_t kEntries = 160;
  struct Entry {
    std::array<std::uint8_t, 16> fingerprint;
    std::uint64_t sequence;  // parts of the namespace written up to here are void
  };
  std::array<char, 8> magic;  // "KVRNPURG"
  std::uint32_t version;
  std::uint32_t crc;
  Uuid store;
  std::uint64_t count;
  std::array<Entry, kEntries> entries;
};
inline constexpr std::uint64_t kPurgePagesOffset = kSuperblockPages * kDiskPage;
inline constexpr std::uint64_t kPurgePages = 64;  // and as many copies behind them

static_assert(std::is_trivially_copyable_v<PurgePage> && sizeof(PurgePage) <= kDiskPage);
static_assert(kPurgePagesOffset + 2 * kPurgePages * kDiskPage <= kSegmentsOffset);
static_assert(std::is_trivially_copyable_v<Superblock> && sizeof(Superblock) == 56);
static_assert(std::is_trivially_copyable_v<SegmentHeader> && sizeof(SegmentHeader) == 56);
static_assert(std::is_trivially_copyable_v<SlotHeader> && sizeof(SlotHeader) == 112);

// Beside the catalog's files: whose they are, also where RocksDB cannot say so any more.
struct CatalogMark {
  std::array<char, 8> magic;  // "KVRNCTLG"
  std::uint32_t version;
  std::uint32_t crc;
  Uuid store;

  static CatalogMark Make(const Uuid& store);
};

inline constexpr std::array<char, 8> kSlotMagic = {'K', 'V', 'R', 'N', 'S', 'L', 'O', 'T'};

static_assert(std::is_trivially_copyable_v<CatalogMark> && sizeof(CatalogMark) == 32);

// Fills in magic, version and checksum.
void Seal(SlotHeader& header);
void Seal(PurgePage& page);
// Puts the structure at the page's beginning, zeros behind it.
template <typename Header>
void WritePage(const Header& header, std::span<std::byte> page);

// DataLoss says what is wrong: magic, checksum, a field out of range. FailedPrecondition: another
// version of the format.
absl::StatusOr<Superblock> ParseSuperblock(std::span<const std::byte> page);
absl::StatusOr<SegmentHeader> ParseSegment(std::span<const std::byte> page);
absl::StatusOr<SlotHeader> ParseSlot(std::span<const std::byte> bytes);
absl::StatusOr<PurgePage> ParsePurgePage(std::span<const std::byte> page);
absl::StatusOr<CatalogMark> ParseCatalogMark(std::span<const std::byte> bytes);

// Where things are.
constexpr std::uint64_t SegmentOffset(std::uint64_t segment_bytes, std::uint64_t segment) {
  return kSegmentsOffset + segment * segment_bytes;
}
// Slots of one segment; 0: none fits.
constexpr std::uint32_t SlotsPerSegment(std::uint64_t segment_bytes, std::uint64_t slot_bytes) {
  return static_cast<std::uint32_t>((segment_bytes - kDiskPage) / (slot_bytes + kDiskPage));
}
constexpr std::uint64_t SlotOffset(std::uint64_t segment_bytes, std::uint64_t segment,
                                   std::uint64_t slot_bytes, std::uint32_t position) {
  return SegmentOffset(segment_bytes, segment) + kDiskPage + position * (slot_bytes + kDiskPage);
}

}  // namespace kavern::tiers::disk

#endif  // KAVERN_TIERS_NVME_DISK_FORMAT_H_
