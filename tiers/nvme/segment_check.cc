#include "tiers/nvme/segment_check.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/copy_and_checksum.h"
#include "base/status_macros.h"
#include "base/units.h"
#include "tiers/nvme/disk_store.h"

namespace kavern::tiers {
namespace {

constexpr std::uint64_t kWindowBytes = 4 * kMiB;   // read at a time
constexpr std::uint64_t kPieceBytes = 256 * kKiB;  // looked at at a time

class SlotReader {
 public:
  explicit SlotReader(const SegmentCheckInput& input)
      : file_(input.file),
        end_(disk::SegmentOffset(input.segment_bytes, input.segment.segment) + input.segment_bytes),
        pages_(std::min(kWindowBytes, input.segment_bytes) / kDiskPage) {}

  // Valid until the next call. At most kPieceBytes, within the segment.
  absl::StatusOr<std::span<const std::byte>> Read(std::uint64_t offset, std::uint64_t bytes) {
    if (offset < at_ || offset + bytes > at_ + filled_) {
      at_ = offset;
      filled_ = std::min(pages_.all().size(), end_ - offset);
      absl::Status status = ReadPages(file_, at_, pages_.all().first(filled_));
      if (!status.ok() && filled_ > bytes) {
        // What lies behind may be to blame.
        filled_ = bytes;
        status = ReadPages(file_, at_, pages_.all().first(filled_));
      }
      if (!status.ok()) {
        filled_ = 0;
        return status;
      }
    }
    return pages_.all().subspan(offset - at_, bytes);
  }

 private:
  const int file_;
  const std::uint64_t end_;
  const DiskPages pages_;
  std::uint64_t at_ = 0;  // of the file, what pages_ holds
  std::uint64_t filled_ = 0;
};

class SegmentCheck {
 public:
  explicit SegmentCheck(const SegmentCheckInput& input) : input_(input), reader_(input) {}

  StoreVerdict Run() {
    const InspectedSegment& segment = input_.segment;
    const std::uint32_t slots = disk::SlotsPerSegment(input_.segment_bytes, segment.slot_bytes);
    for (std::uint32_t position = 0; position < slots; ++position) {
      CheckSlot(
          disk::SlotOffset(input_.segment_bytes, segment.segment, segment.slot_bytes, position));
      input_.progress(segment.slot_bytes + kDiskPage);
    }
    return std::move(verdict_);
  }

 private:
  void CheckSlot(std::uint64_t offset) {
    const disk::SlotHeader* listed = input_.listed(offset);
    // What the block loses if it is not there: nothing, if another write of it counts.
    const disk::SlotHeader* needed =
        listed != nullptr && input_.is_superseded(*listed) ? nullptr : listed;
    const auto page = reader_.Read(offset, kDiskPage);
    if (!page.ok()) return Damaged(offset, std::string(page.status().message()), needed);
    const auto header = disk::ParseSlot(*page);
    if (!header.ok()) {
      if (needed == nullptr && !HasOurMark(*page)) return Unused(listed);
      return Damaged(offset, std::string(header.status().message()), needed);
    }
    if (header->epoch != input_.segment.epoch) {
      if (needed == nullptr) return Unused(listed);
      return Damaged(offset, "slot: what the catalog names is not there", needed);
    }
    if (header->offset != offset || header->payload_bytes > input_.segment.slot_bytes) {
      return Damaged(offset, "slot: its header is another slot's", needed);
    }
    const bool is_listed = listed != nullptr && *listed == *header;
    if (listed != nullptr && !is_listed) ++verdict_.void_entries;
    if (input_.is_purged(*header)) {
      ++verdict_.purged_parts;
      return;
    }
    if (input_.is_superseded(*header)) {
      ++verdict_.superseded_parts;
      return;
    }
    CheckPayload(*header, is_listed);
  }

  void Unused(const disk::SlotHeader* listed) {
    ++verdict_.unused_slots;
    verdict_.void_entries += listed != nullptr ? 1 : 0;
  }

  // Only what Kavern wrote in the segment's present use begins so: clients do not know its epoch.
  bool HasOurMark(std::span<const std::byte> page) const {
    disk::SlotHeader raw;
    std::memcpy(&raw, page.data(), sizeof(raw));
    return raw.magic == disk::kSlotMagic && raw.epoch == input_.segment.epoch;
  }

  void CheckPayload(const disk::SlotHeader& header, bool is_listed) {
    std::uint32_t crc = PartChecksumSeed(BlockKey{header.key}, header.part);
    for (std::uint64_t done = 0; done < header.payload_bytes;) {
      const std::uint64_t piece = std::min(kPieceBytes, header.payload_bytes - done);
      const auto read = reader_.Read(header.offset + kDiskPage + done, AlignUp(piece, kDiskPage));
      if (!read.ok()) {
        return Damaged(header.offset, std::string(read.status().message()), &header);
      }
      crc = Crc32c(read->first(piece), crc);
      done += piece;
    }
    if (crc == header.payload_crc) {
      ++verdict_.right_parts;
      verdict_.right_bytes += header.payload_bytes;
      verdict_.unlisted_parts += is_listed ? 0 : 1;
    } else if (is_listed || !input_.catalog_is_sound) {
      Damaged(header.offset, "payload: its checksum is wrong", &header);
    } else {
      ++verdict_.unfinished_parts;  // the catalog names a part only after all of it is written
    }
  }

  void Damaged(std::uint64_t offset, std::string what, const disk::SlotHeader* lost) {
    ++verdict_.damaged_parts;
    StoreDamage damage{input_.segment.device, offset, std::move(what)};
    if (lost != nullptr) {
      damage.key = BlockKey{lost->key};
      damage.part = lost->part;
    }
    verdict_.damage.push_back(std::move(damage));
  }

  const SegmentCheckInput& input_;
  SlotReader reader_;
  StoreVerdict verdict_;
};

}  // namespace

absl::Status ReadPages(int file, std::uint64_t offset, std::span<std::byte> pages) {
  while (!pages.empty()) {
    const ssize_t got = pread(file, pages.data(), pages.size(), static_cast<off_t>(offset));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return ErrnoStatus(errno, "read");
    if (got == 0) return absl::DataLossError("the file ends too early");
    // Direct I/O goes on at whole pages only.
    const std::size_t whole = static_cast<std::size_t>(got) / kDiskPage * kDiskPage;
    if (whole == 0) return absl::DataLossError("the file ends too early");
    offset += whole;
    pages = pages.subspan(whole);
  }
  return absl::OkStatus();
}

StoreVerdict CheckSegment(const SegmentCheckInput& input) {
  return SegmentCheck(input).Run();
}

}  // namespace kavern::tiers
