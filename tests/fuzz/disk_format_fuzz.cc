// The parsers of what is on disk. The first byte says which structure, and whether its checksum is
// made right first: without that nothing would get past it.
#include <array>
#include <vector>

#include "base/copy_and_checksum.h"
#include "fuzz_input.h"
#include "tiers/nvme/disk_format.h"

namespace {

using kavern::fuzz::Require;
namespace disk = kavern::tiers::disk;

constexpr std::size_t kCrcOffset = 12;  // in every structure

void MakeChecksumRight(std::span<std::byte> page, std::size_t structure_bytes) {
  if (page.size() < structure_bytes) return;
  std::memset(page.data() + kCrcOffset, 0, sizeof(std::uint32_t));
  const std::uint32_t crc = kavern::Crc32c(page.first(structure_bytes), 0);
  std::memcpy(page.data() + kCrcOffset, &crc, sizeof(crc));
}

void Slot(std::span<const std::byte> page) {
  const auto slot = disk::ParseSlot(page);
  if (!slot.ok()) return;
  Require(slot->part < slot->part_count, "a slot's part is one of its parts");
  Require(slot->payload_bytes > 0, "a slot holds something");
  disk::SlotHeader again = *slot;
  disk::Seal(again);
  Require(again == *slot, "a slot that parses is written the same way");
}

void Segment(std::span<const std::byte> page) {
  const auto segment = disk::ParseSegment(page);
  if (!segment.ok()) return;
  Require(segment->slot_bytes > 0 && segment->slot_bytes % kavern::tiers::kDiskPage == 0,
          "slots are whole pages");
}

void Super(std::span<const std::byte> page) {
  const auto block = disk::ParseSuperblock(page);
  if (!block.ok()) return;
  Require(block->device < block->device_count, "a device is one of its store's");
  Require(block->segment_bytes > 0, "segments are not empty");
}

void Purge(std::span<const std::byte> page) {
  const auto purge = disk::ParsePurgePage(page);
  if (!purge.ok()) return;
  Require(purge->count <= disk::PurgePage::kEntries, "a purge page has no more than fit");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  kavern::fuzz::Input input(data, size);
  const auto choice = input.Take<std::uint8_t>();
  std::vector<std::byte> page(input.rest().begin(), input.rest().end());
  struct Structure {
    std::size_t bytes;
    void (*parse)(std::span<const std::byte>);
  };
  static constexpr std::array<Structure, 4> kStructures = {{
      {sizeof(disk::Superblock), Super},
      {sizeof(disk::SegmentHeader), Segment},
      {sizeof(disk::SlotHeader), Slot},
      {sizeof(disk::PurgePage), Purge},
  }};
  const Structure& structure = kStructures[choice % kStructures.size()];
  if ((choice & 0x80) != 0) MakeChecksumRight(page, structure.bytes);
  structure.parse(page);
  return 0;
}
