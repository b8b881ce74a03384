#include "tests/crash/crash_store.h"

#include <malloc.h>

#include <atomic>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/copy_and_checksum.h"
#include "base/status_macros.h"
#include "client/directory_reader.h"
#include "tests/fakes/fault_file_system.h"
#include "tests/unit/tiers/store_fixture.h"

namespace kavern::tiers {
namespace {

constexpr std::uint64_t kRegionBytes = std::uint64_t{64} * 1024;

// Thousands of stores and images of disks come and go: their memory is kept, or faulting it in
// would be most of the time.
[[maybe_unused]] const bool kKeepMemory =
    mallopt(M_MMAP_THRESHOLD, 64 << 20) == 1 && mallopt(M_TRIM_THRESHOLD, 1 << 30) == 1;

NamespaceSpec SpecOfNumber(std::uint32_t ns) {
  return SpecOf(absl::StrCat("model", ns), 1, ns == 2 ? 2 : 1);
}

TieredStoreOptions ToStoreOptions(const CrashStoreOptions& from) {
  TieredStoreOptions options;
  options.ram.region_bytes = kRegionBytes;
  options.ram.capacity_bytes = from.ram_regions * kRegionBytes;
  options.ram.huge_pages = HugePages::kOff;
  options.ram.read_memory = [] {
    MemoryFacts facts;
    facts.machine_total_bytes = facts.machine_available_bytes = std::uint64_t{1} << 40;
    return absl::StatusOr<MemoryFacts>(facts);
  };
  TieredStoreOptions::Disk disk;
  for (std::uint32_t device = 0; device < kCrashDevices; ++device) {
    disk.store.devices.push_back(
        {absl::StrCat(from.directory, "/disk", device), kCrashDeviceBytes});
  }
  disk.store.catalog_path = from.directory + "/catalog";
  disk.store.catalog_env = from.catalog_env;
  if (from.catalog_env == nullptr && from.directory.starts_with("/dev/shm")) {
    static FaultFileSystem unreserved;  // sound
    disk.store.catalog_env = unreserved.env();
  }
  disk.store.segment_bytes = kCrashSegmentBytes;
  disk.store.queue_depth = from.queue_depth;
  disk.store.io_uring = from.io_uring;
  disk.durability = from.durability;
  disk.store.batch_interval = from.batch_interval;
  disk.store.open = from.open;
  disk.read_timeout = from.read_timeout;
  options.disk = std::move(disk);
  return options;
}

}  // namespace

DiskImages EmptyImages() {
  DiskImages images;
  for (std::uint32_t device = 0; device < kCrashDevices; ++device) {
    images.push_back(std::make_shared<DiskImage>(kCrashDeviceBytes));
  }
  return images;
}

std::uint32_t DeviceNumber(const BlockDeviceOptions& options) {
  return static_cast<std::uint32_t>(options.path.back() - '0');
}

OpenDevice OpenImages(DiskImages images) {
  return [images = std::move(images)](
             const BlockDeviceOptions& options) -> absl::StatusOr<std::unique_ptr<BlockDevice>> {
    return std::make_unique<MemoryDevice>(images[DeviceNumber(options)]);
  };
}

// ---- Directories ----

void CrashStore::Directories::OnDirectory(const NamespaceFingerprint& fingerprint,
                                          std::uint64_t generation, std::uint64_t size_bytes,
                                          UniqueFd fd) {
  MutexLock lock(mu_);
  Newest& newest = newest_[fingerprint];
  if (generation > newest.generation) newest = {generation, size_bytes, std::move(fd), false};
}

void CrashStore::Directories::OnDirectoryGone(const NamespaceFingerprint& fingerprint,
                                              std::uint64_t generation) {
  MutexLock lock(mu_);
  Newest& newest = newest_[fingerprint];
  if (generation >= newest.generation) newest.gone = true;
}

std::uint8_t CrashStore::Directories::Tiers(const NamespaceFingerprint& fingerprint,
                                            const BlockKey& key) const {
  MutexLock lock(mu_);
  const auto newest = newest_.find(fingerprint);
  if (newest == newest_.end() || newest->second.gone) return 0;
  auto mapping =
      Mapping::Map(newest->second.fd.get(), newest->second.size_bytes, Mapping::Access::kReadOnly);
  if (!mapping.ok()) return 0;
  const auto reader =
      client::DirectoryReader::Create(*std::move(mapping), fingerprint, newest->second.generation);
  return reader.ok() ? reader->Lookup(key) : 0;
}

// ---- The store ----

absl::StatusOr<std::unique_ptr<CrashStore>> CrashStore::Open(const CrashStoreOptions& options) {
  std::unique_ptr<CrashStore> made(new CrashStore);
  KAVERN_ASSIGN_OR_RETURN(made->store_,
                          TieredStore::Create(ToStoreOptions(options), made->directories_));
  for (std::uint32_t ns = 0; ns < kCrashNamespaces; ++ns) {
    KAVERN_ASSIGN_OR_RETURN(auto ref, made->store_->OpenNamespace("tenant", SpecOfNumber(ns)));
    made->namespaces_.push_back(std::move(ref));
  }
  made->store_->Quiesce();
  const std::string failure = made->store_->GetStatus().disk.failure;
  if (!failure.empty()) return absl::InternalError(failure);
  return made;
}

CrashStore::~CrashStore() {
  namespaces_.clear();
  store_.reset();
}

bool CrashStore::Store(const BlockName& name, std::uint64_t version) {
  return StoreAs(name, version, std::nullopt, nullptr);
}

CrashStore::StrictStore CrashStore::StoreStrict(const BlockName& name, std::uint64_t version) {
  // One answer for each part; the one that completes the block tells of the block.
  auto blocks = std::make_shared<std::atomic<std::uint32_t>>(0);
  auto answers = std::make_shared<std::atomic<std::uint32_t>>(0);
  const bool stored = StoreAs(name, version, DiskDurability::kStrict,
                              [blocks, answers](const TieredStore::Durable& durable) {
                                *blocks += durable.blocks;
                                ++*answers;
                                answers->notify_all();
                              });
  if (!stored) return {};
  const auto groups = static_cast<std::uint32_t>(ns(name.ns).spec().layout.groups.size());
  for (std::uint32_t told = *answers; told < groups; told = *answers) answers->wait(told);
  return {true, *blocks > 0};
}

bool CrashStore::StoreAs(const BlockName& name, std::uint64_t version,
                         std::optional<DiskDurability> durability,
                         const TieredStore::DurableDone& done) {
  const BlockKey key = KeyOf(name);
  const NamespaceRef& ref = ns(name.ns);
  StoreRequest request;
  request.parent = name.n % 4 == 0 ? ref.fingerprint().RootKey() : KeyOf({name.ns, name.n - 1});
  request.keys = {&key, 1};
  request.durability = durability;
  const auto groups = static_cast<std::uint32_t>(ref.spec().layout.groups.size());
  bool published = true;
  for (request.group = 0; request.group < groups; ++request.group) {
    auto grant = store_->BeginStore(ref, request);
    if (!grant.ok() || grant->lease.empty()) return false;
    const Extent extent = grant->lease.extent(0);
    FillBytes(extent.bytes(), name, grant->lease.part(), version);
    const std::uint32_t checksum =
        Crc32c(extent.bytes(), PartChecksumSeed(key, grant->lease.part()));
    const auto committed = store_->CommitStore(grant->lease, 0, {&checksum, 1}, done);
    published = published && committed.value_or(0) == 1;
  }
  return published;
}

absl::Status CrashStore::Purge(std::uint32_t number) {
  const auto purged = store_->Purge(ns(number).fingerprint());
  // Not known means that it is empty, and will stay so.
  return absl::IsNotFound(purged.status()) ? absl::OkStatus() : purged.status();
}

std::set<BlockName> CrashStore::OnDisk(
    const std::map<BlockName, std::vector<std::uint64_t>>& of) const {
  std::set<BlockName> found;
  for (const auto& [name, versions] : of) {
    const std::uint8_t tiers = directories_.Tiers(ns(name.ns).fingerprint(), KeyOf(name));
    if ((tiers & shm::kTierBitNvme) != 0) found.insert(name);
  }
  return found;
}

bool CrashStore::Read(const BlockName& name, const BlockTruth& truth, CrashReport& report) {
  const BlockKey key = KeyOf(name);
  const NamespaceRef& ref = ns(name.ns);
  const auto groups = static_cast<std::uint32_t>(ref.spec().layout.groups.size());
  std::uint32_t served = 0;
  for (std::uint32_t group = 0; group < groups; ++group) {
    const auto result = store_->FetchAll(ref, {.keys = {&key, 1}, .shard = 0, .group = group});
    if (!result.ok() || result->lease.empty()) continue;
    ++served;
    const auto bytes = result->lease.parts()[0].extent.bytes();
    report.bytes_verified += bytes.size();
    switch (truth.Judge(name, group, bytes)) {
      case Verdict::kRight:
        break;
      case Verdict::kWrong:
        report.Violated(report.wrong_bytes, absl::StrCat("wrong bytes of ", name.ns, "/", name.n));
        break;
      case Verdict::kResurrected:
        report.Violated(report.resurrected,
                        absl::StrCat(name.ns, "/", name.n, " came back after its purge"));
        break;
    }
  }
  return served == groups;
}

std::set<BlockName> CrashStore::ReadAll(const BlockTruth& truth, CrashReport& report) {
  std::set<BlockName> served;
  for (const auto& [name, versions] : truth.versions()) {
    const BlockKey key = KeyOf(name);
    // A group that has no memory yet is given a region in the background.
    constexpr int kTries = 4;
    for (int i = 0; i < kTries && store_->Match(ns(name.ns), {&key, 1}) == 1; ++i) {
      if (i > 0) store_->Quiesce();
      if (!Read(name, truth, report)) continue;
      served.insert(name);
      break;
    }
  }
  return served;
}

void CrashStore::CheckSound(CrashReport& report) {
  store_->Quiesce();
  if (const absl::Status audit = store_->Audit(); !audit.ok()) {
    report.Violated(report.unsound, std::string(audit.message()));
  }
  std::uint64_t expected = 0;
  for (const NamespaceStatus& status : store_->ListNamespaces()) {
    std::uint64_t block_bytes = 0;
    for (std::uint32_t group = 0; group < status.spec.layout.groups.size(); ++group) {
      block_bytes += status.spec.layout.SlotBytes(group);
    }
    expected += status.disk_blocks * block_bytes;
  }
  const std::uint64_t used = store_->GetStatus().disk.used_bytes;
  if (used != expected) {
    report.Violated(report.leaked_bytes,
                    absl::StrCat(used, " bytes in use, blocks have ", expected));
  }
}

std::set<BlockName> CheckRecovery(const CrashStoreOptions& options, const BlockTruth& truth,
                                  const std::set<BlockName>& required, const std::string& what,
                                  CrashReport& report) {
  ++report.crashes;
  const std::uint64_t violations = report.Violations();
  const auto began = std::chrono::steady_clock::now();
  auto opened = CrashStore::Open(options);
  const auto took = std::chrono::steady_clock::now() - began;
  report.recovery_ms.push_back(std::chrono::duration<double, std::milli>(took).count());
  if (!opened.ok()) {
    report.Violated(report.unrecovered,
                    absl::StrCat(what, ": does not open: ", opened.status().ToString()));
    return {};
  }
  CrashStore& store = **opened;
  std::set<BlockName> served = store.ReadAll(truth, report);
  report.acked_checked += required.size();
  for (const BlockName& name : required) {
    if (served.contains(name)) continue;
    report.Violated(report.acked_lost, absl::StrCat(what, ": ", name.ns, "/", name.n, " is lost"));
  }
  store.CheckSound(report);
  if (violations == 0 && report.Violations() > 0) {
    report.first_violation =
        absl::StrCat(what, ": ", report.first_violation,
                     "; catalog: ", store.store().GetStatus().disk.recovered_from_headers);
  }
  return served;
}

}  // namespace kavern::tiers
