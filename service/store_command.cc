#include "service/store_command.h"

#include <unistd.h>

#include <cstdio>
#include <nlohmann/json.hpp>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/units.h"
#include "tiers/nvme/store_inspector.h"

namespace kavern::service {
namespace {

using nlohmann::json;
using tiers::StoreDamage;
using tiers::StoreInspector;
using tiers::StoreStats;
using tiers::StoreVerdict;

constexpr int kExitOk = 0;
constexpr int kExitDamaged = 1;
constexpr int kExitUsage = 2;
constexpr int kExitRefused = 4;

int Fail(const absl::Status& status) {
  std::fprintf(stderr, "kavernd store: %s\n", std::string(status.message()).c_str());
  switch (status.code()) {
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kNotFound:
      return kExitUsage;
    case absl::StatusCode::kFailedPrecondition:
    case absl::StatusCode::kPermissionDenied:
      return kExitRefused;
    default:
      return kExitDamaged;
  }
}

void Print(const std::string& text) {
  std::fputs(text.c_str(), stdout);
}

std::string PathOf(const DaemonConfig& config, std::uint32_t device) {
  return device == StoreDamage::kCatalog ? config.nvme.catalog : config.nvme.devices[device].path;
}

// One line, redrawn in place where stderr is a terminal.
class Progress {
 public:
  explicit Progress(bool wanted) : shown_(wanted && isatty(STDERR_FILENO) != 0) {}
  ~Progress() {
    if (percent_ >= 0) std::fputs("\r\x1b[K", stderr);
  }
  void Update(std::uint64_t done, std::uint64_t total) {
    const int percent = total == 0 ? 100 : static_cast<int>(100 * done / total);
    if (!shown_ || percent == percent_) return;
    percent_ = percent;
    std::fprintf(stderr, "\r\x1b[Kverify  %d %%  %s of %s", percent, FormatBytes(done).c_str(),
                 FormatBytes(total).c_str());
  }

 private:
  const bool shown_;
  int percent_ = -1;
};

// ---- verify ----

json VerdictJson(const DaemonConfig& config, const StoreVerdict& verdict, std::size_t listed) {
  json damage = json::array();
  for (std::size_t i = 0; i < listed; ++i) {
    const StoreDamage& place = verdict.damage[i];
    json row = {{"path", PathOf(config, place.device)},
                {"device", nullptr},
                {"offset", nullptr},
                {"what", place.what},
                {"key", nullptr},
                {"part", nullptr}};
    if (place.device != StoreDamage::kCatalog) {
      row["device"] = place.device;
      row["offset"] = place.offset;
    }
    if (!place.key.IsZero()) {
      row["key"] = place.key.ToHex();
      row["part"] = place.part;
    }
    damage.push_back(std::move(row));
  }
  return {{"sound", verdict.sound()},
          {"right_parts", verdict.right_parts},
          {"right_bytes", verdict.right_bytes},
          {"unlisted_parts", verdict.unlisted_parts},
          {"purged_parts", verdict.purged_parts},
          {"superseded_parts", verdict.superseded_parts},
          {"unfinished_parts", verdict.unfinished_parts},
          {"unused_slots", verdict.unused_slots},
          {"catalog_entries", verdict.catalog_entries},
          {"void_entries", verdict.void_entries},
          {"damaged_parts", verdict.damaged_parts},
          {"damaged_structures", verdict.damaged_structures},
          {"damage", std::move(damage)}};
}

std::string VerdictText(const DaemonConfig& config, const StoreVerdict& verdict,
                        std::size_t listed) {
  std::string text;
  const auto row = [&text](const char* name, std::uint64_t count, const std::string& note) {
    absl::StrAppendFormat(&text, "%-19s %10d  %s\n", name, count, note);
  };
  row("right", verdict.right_parts,
      absl::StrCat("parts, ", FormatBytes(verdict.right_bytes), " of payload"));
  row("  not in catalog", verdict.unlisted_parts, "of these: only a rebuild would find them");
  row("void: purged", verdict.purged_parts, "parts that were deleted by their user");
  row("void: superseded", verdict.superseded_parts, "parts of blocks that were written again");
  row("void: unfinished", verdict.unfinished_parts, "parts whose write was cut short");
  row("void: entries", verdict.void_entries,
      absl::StrCat("of the catalog's ", verdict.catalog_entries, ": overwritten since, or purged"));
  row("unused slots", verdict.unused_slots, "");
  row("damaged", verdict.damaged_parts, "parts");
  row("damaged", verdict.damaged_structures, "superblocks, purge pages, segment headers, catalog");
  for (std::size_t i = 0; i < listed; ++i) {
    const StoreDamage& place = verdict.damage[i];
    absl::StrAppend(&text, "  ", PathOf(config, place.device));
    if (place.device != StoreDamage::kCatalog) absl::StrAppend(&text, " at ", place.offset);
    absl::StrAppend(&text, ": ", place.what);
    if (!place.key.IsZero()) {
      absl::StrAppend(&text, " (block ", place.key.ToHex(), ", part ", place.part, ")");
    }
    text += "\n";
  }
  const std::uint64_t all = verdict.damaged_parts + verdict.damaged_structures;
  if (all > listed) absl::StrAppend(&text, "  and ", all - listed, " more (--damage-max)\n");
  absl::StrAppend(&text, verdict.sound()
                             ? "sound\n"
                             : "damaged: the daemon drops these when it meets them, as misses\n");
  return text;
}

int Verify(const DaemonConfig& config, const StoreCommand& command, StoreInspector& store) {
  StoreVerdict verdict;
  {
    Progress progress(!command.json);
    verdict = store.Verify(
        [&progress](std::uint64_t done, std::uint64_t total) { progress.Update(done, total); });
  }
  const std::size_t listed = std::min<std::size_t>(verdict.damage.size(), command.damage_max);
  Print(command.json ? VerdictJson(config, verdict, listed).dump(2) + "\n"
                     : VerdictText(config, verdict, listed));
  return verdict.sound() ? kExitOk : kExitDamaged;
}

// ---- stats ----

json StatsJson(const StoreStats& stats) {
  json devices = json::array();
  for (const StoreStats::Device& device : stats.devices) {
    devices.push_back({{"path", device.path},
                       {"capacity_bytes", device.capacity_bytes},
                       {"segments", device.segments},
                       {"free_segments", device.free_segments}});
  }
  json classes = json::array();
  for (const auto& [slot_bytes, slots] : stats.classes) {
    classes.push_back({{"slot_bytes", slot_bytes},
                       {"segments", slots.segments},
                       {"slots", slots.slots},
                       {"used_slots", slots.used_slots}});
  }
  json namespaces = json::array();
  for (const auto& [fingerprint, counts] : stats.namespaces) {
    namespaces.push_back({{"fingerprint", fingerprint.ToHex()},
                          {"blocks", counts.blocks},
                          {"incomplete_blocks", counts.incomplete_blocks},
                          {"parts", counts.parts},
                          {"payload_bytes", counts.payload_bytes},
                          {"superseded_parts", counts.superseded_parts}});
  }
  json purges = json::array();
  for (const StoreStats::Purge& purge : stats.purges) {
    purges.push_back({{"fingerprint", purge.fingerprint.ToHex()},
                      {"sequence", purge.sequence},
                      {"writes_since", purge.writes_since}});
  }
  return {{"store", stats.store_hex},
          {"segment_bytes", stats.segment_bytes},
          {"last_sequence", stats.last_sequence},
          {"devices", std::move(devices)},
          {"slot_sizes", std::move(classes)},
          {"namespaces", std::move(namespaces)},
          {"purges", std::move(purges)},
          {"catalog",
           {{"entries", stats.catalog_entries},
            {"bytes", stats.catalog_bytes},
            {"damage", stats.catalog_damage}}}};
}

std::string StatsText(const StoreStats& stats) {
  std::string text =
      absl::StrCat("store ", stats.store_hex, ", segments of ", FormatBytes(stats.segment_bytes),
                   ", ", stats.last_sequence, " parts written so far\n");
  for (const StoreStats::Device& device : stats.devices) {
    absl::StrAppend(&text, "device     ", device.path, ": ", FormatBytes(device.capacity_bytes),
                    ", ", device.free_segments, " of ", device.segments, " segments free\n");
  }
  for (const auto& [slot_bytes, slots] : stats.classes) {
    absl::StrAppend(&text, "slots      of ", FormatBytes(slot_bytes), ": ", slots.used_slots,
                    " of ", slots.slots, " used, in ", slots.segments, " segments\n");
  }
  for (const auto& [fingerprint, counts] : stats.namespaces) {
    absl::StrAppend(&text, "namespace  ", fingerprint.ToHex(), ": ", counts.blocks, " blocks, ",
                    FormatBytes(counts.payload_bytes));
    if (counts.incomplete_blocks > 0) {
      absl::StrAppend(&text, "; ", counts.incomplete_blocks, " incomplete");
    }
    if (counts.superseded_parts > 0) {
      absl::StrAppend(&text, "; ", counts.superseded_parts, " superseded parts");
    }
    text += "\n";
  }
  for (const StoreStats::Purge& purge : stats.purges) {
    absl::StrAppend(&text, "purged     ", purge.fingerprint.ToHex(), ": up to write ",
                    purge.sequence, ", ", purge.writes_since, " writes ago\n");
  }
  absl::StrAppend(&text, "catalog    ", stats.catalog_entries, " entries, ",
                  FormatBytes(stats.catalog_bytes), "\n");
  if (!stats.catalog_damage.empty()) {
    absl::StrAppend(&text, "damaged    ", stats.catalog_damage,
                    "; the counts are out of the slots' headers\n");
  }
  return text;
}

int Stats(const StoreCommand& command, StoreInspector& store) {
  const StoreStats stats = store.Stats();
  Print(command.json ? StatsJson(stats).dump(2) + "\n" : StatsText(stats));
  return stats.catalog_damage.empty() ? kExitOk : kExitDamaged;
}

// ---- export-catalog ----

int ExportCatalog(StoreInspector& store) {
  const absl::Status status = store.ExportCatalog([](const StoreInspector::Entry& entry) {
    const tiers::disk::SlotHeader& header = entry.header;
    const json row = {{"device", entry.device},
                      {"offset", header.offset},
                      {"key", BlockKey{header.key}.ToHex()},
                      {"parent", BlockKey{header.parent}.ToHex()},
                      {"namespace", NamespaceFingerprint{header.fingerprint}.ToHex()},
                      {"part", header.part},
                      {"part_count", header.part_count},
                      {"payload_bytes", header.payload_bytes},
                      {"checksum", header.payload_crc},
                      {"sequence", header.sequence},
                      {"void", entry.is_void}};
    Print(row.dump() + "\n");
  });
  return status.ok() ? kExitOk : Fail(status);
}

}  // namespace

int RunStoreCommand(const DaemonConfig& config, const StoreCommand& command) {
  if (config.nvme.devices.empty()) {
    return Fail(absl::InvalidArgumentError(
        "nvme.devices: none; name the daemon's configuration with --config"));
  }
  tiers::InspectorOptions options;
  for (const DaemonConfig::NvmeDevice& device : config.nvme.devices) {
    options.devices.push_back(device.path);
  }
  options.catalog_path = config.nvme.catalog;
  options.damage_listed_max = command.damage_max;
  const auto store = StoreInspector::Open(std::move(options));
  if (!store.ok()) return Fail(store.status());
  switch (command.what) {
    case StoreCommand::What::kVerify:
      return Verify(config, command, **store);
    case StoreCommand::What::kStats:
      return Stats(command, **store);
    case StoreCommand::What::kExportCatalog:
      return ExportCatalog(**store);
    case StoreCommand::What::kNone:
      break;
  }
  return kExitUsage;
}

}  // namespace kavern::service
