#include "tests/unit/tiers/store_fixture.h"

#include <algorithm>
#include <cstring>

#include "base/copy_and_checksum.h"

namespace kavern::tiers {
namespace {

std::uint64_t Mix(std::uint64_t x) {
  x += 0x9e3779b97f4a7c15;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
  x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
  return x ^ (x >> 31);
}

std::uint64_t PayloadSeed(const BlockKey& key, std::uint32_t part) {
  std::uint64_t words[2];
  std::memcpy(words, key.bytes.data(), sizeof(words));
  return Mix(words[0] ^ Mix(words[1] + part));
}

}  // namespace

BlockKey KeyOf(std::uint64_t n) {
  const std::uint64_t words[2] = {Mix(n), Mix(~n)};
  BlockKey key;
  std::memcpy(key.bytes.data(), words, sizeof(words));
  return key;
}

std::vector<BlockKey> KeysOf(std::uint64_t first, std::uint64_t count) {
  std::vector<BlockKey> keys;
  for (std::uint64_t n = first; n < first + count; ++n) keys.push_back(KeyOf(n));
  return keys;
}

void FillPayload(const Extent& extent, const BlockKey& key, std::uint32_t part) {
  const std::uint64_t seed = PayloadSeed(key, part);
  const auto bytes = extent.bytes();
  for (std::size_t at = 0; at < bytes.size(); at += 8) {
    const std::uint64_t word = Mix(seed + at);
    std::memcpy(bytes.data() + at, &word, 8);
  }
}

bool IsPayload(const Extent& extent, const BlockKey& key, std::uint32_t part) {
  const std::uint64_t seed = PayloadSeed(key, part);
  const auto bytes = extent.bytes();
  for (std::size_t at = 0; at < bytes.size(); at += 8) {
    std::uint64_t word = 0;
    std::memcpy(&word, bytes.data() + at, 8);
    if (word != Mix(seed + at)) return false;
  }
  return true;
}

bool IsZeroed(const Extent& extent) {
  const auto bytes = extent.bytes();
  return std::all_of(bytes.begin(), bytes.end(), [](std::byte b) { return b == std::byte{0}; });
}

std::uint32_t ChecksumOf(const Extent& extent, const BlockKey& key, std::uint32_t part) {
  return Crc32c(extent.bytes(), PartChecksumSeed(key, part));
}

NamespaceSpec SpecOf(const std::string& model, std::uint32_t shards, std::uint32_t groups) {
  NamespaceSpec spec;
  spec.model = model;
  spec.layout.dtype = KvDtype::kBFloat16;
  spec.layout.tokens_per_block = 16;
  spec.layout.shard_count = shards;
  for (std::uint32_t group = 0; group < groups; ++group) {
    LayerGroup layers;
    layers.layer_count = group + 1;
    layers.kv_heads = 1;
    layers.head_dim = 64;
    spec.layout.groups.push_back(layers);
  }
  return spec;
}

void RecordedEvents::OnRegionRetired(std::uint64_t region_id) {
  MutexLock lock(mu_);
  retired_.insert(region_id);
}

void RecordedEvents::OnDirectory(const NamespaceFingerprint& fingerprint, std::uint64_t generation,
                                 std::uint64_t /*size_bytes*/, UniqueFd fd) {
  MutexLock lock(mu_);
  directories_[fingerprint].push_back({generation, std::move(fd)});
}

void RecordedEvents::OnDirectoryGone(const NamespaceFingerprint& fingerprint,
                                     std::uint64_t generation) {
  MutexLock lock(mu_);
  gone_[fingerprint] = generation;
}

std::set<std::uint64_t> RecordedEvents::RetiredRegions() const {
  MutexLock lock(mu_);
  return retired_;
}

std::vector<std::uint64_t> RecordedEvents::Generations(
    const NamespaceFingerprint& fingerprint) const {
  MutexLock lock(mu_);
  std::vector<std::uint64_t> generations;
  const auto found = directories_.find(fingerprint);
  if (found == directories_.end()) return generations;
  for (const Directory& directory : found->second) generations.push_back(directory.generation);
  return generations;
}

bool RecordedEvents::HasDirectory(const NamespaceFingerprint& fingerprint) const {
  const std::vector<std::uint64_t> generations = Generations(fingerprint);
  MutexLock lock(mu_);
  const auto gone = gone_.find(fingerprint);
  return !generations.empty() && (gone == gone_.end() || gone->second < generations.back());
}

void StoreFixture::Create(std::uint64_t regions,
                          const std::function<void(TieredStoreOptions&)>& change) {
  TieredStoreOptions options;
  options.ram.region_bytes = kRegionBytes;
  options.ram.capacity_bytes = regions * kRegionBytes;
  options.ram.huge_pages = HugePages::kOff;
  options.ram.read_memory = [] {
    MemoryFacts facts;
    facts.machine_total_bytes = facts.machine_available_bytes = std::uint64_t{1} << 40;
    return absl::StatusOr<MemoryFacts>(facts);
  };
  options.clock = &clock_;
  if (change) change(options);
  auto store = TieredStore::Create(std::move(options), events_);
  ASSERT_TRUE(store.ok()) << store.status().ToString();
  store_ = *std::move(store);
}

void StoreFixture::Start(std::uint64_t regions,
                         const std::function<void(TieredStoreOptions&)>& change) {
  Create(regions, change);
  if (store_ != nullptr) store_->Quiesce();
}

void StoreFixture::TearDown() {
  if (store_ == nullptr) return;
  store_->Quiesce();
  ExpectSound();
  store_.reset();
}

NamespaceRef StoreFixture::Open(const NamespaceSpec& spec, const std::string& tenant) {
  auto ref = store_->OpenNamespace(tenant, spec);
  EXPECT_TRUE(ref.ok()) << ref.status().ToString();
  return *std::move(ref);
}

StoreGrant StoreFixture::Begin(const NamespaceRef& ns, const BlockKey& parent,
                               std::span<const BlockKey> keys, std::uint32_t shard,
                               std::uint32_t group) {
  StoreRequest request;
  request.parent = parent;
  request.keys = keys;
  request.shard = shard;
  request.group = group;
  auto grant = store_->BeginStore(ns, request);
  EXPECT_TRUE(grant.ok()) << grant.status().ToString();
  return grant.ok() ? *std::move(grant) : StoreGrant{};
}

std::uint32_t StoreFixture::FillAndCommit(StoreGrant& grant) {
  std::vector<std::uint32_t> checksums;
  for (std::size_t i = 0; i < grant.lease.size(); ++i) {
    FillPayload(grant.lease.extent(i), grant.lease.key(i), grant.lease.part());
    checksums.push_back(ChecksumOf(grant.lease.extent(i), grant.lease.key(i), grant.lease.part()));
  }
  const auto published = store_->CommitStore(grant.lease, 0, checksums);
  EXPECT_TRUE(published.ok()) << published.status().ToString();
  return published.value_or(0);
}

std::size_t StoreFixture::Store(const NamespaceRef& ns, const BlockKey& parent,
                                std::span<const BlockKey> keys, std::uint32_t shard,
                                std::uint32_t group) {
  StoreGrant grant = Begin(ns, parent, keys, shard, group);
  FillAndCommit(grant);
  return grant.lease.size();
}

std::size_t StoreFixture::StoreOne(const NamespaceRef& ns, std::uint64_t n) {
  const BlockKey key = KeyOf(n);
  return Store(ns, Root(ns), {&key, 1});
}

FetchResult StoreFixture::Fetch(const NamespaceRef& ns, std::span<const BlockKey> keys,
                                std::uint32_t shard, std::uint32_t group) {
  auto result = store_->Fetch(ns, keys, shard, group);
  EXPECT_TRUE(result.ok()) << result.status().ToString();
  return result.ok() ? *std::move(result) : FetchResult{};
}

bool StoreFixture::IsCached(const NamespaceRef& ns, const BlockKey& key) {
  return store_->Match(ns, {&key, 1}) == 1;
}

bool StoreFixture::HoldsPayloads(const ReadLease& lease, std::span<const BlockKey> keys,
                                 std::uint32_t part) {
  for (const ReadLease::Part& held : lease.parts()) {
    const BlockKey& key = keys[held.index];
    if (!IsPayload(held.extent, key, part)) return false;
    if (ChecksumOf(held.extent, key, part) != held.checksum) return false;
  }
  return true;
}

void StoreFixture::ExpectSound() {
  const absl::Status audit = store_->Audit();
  EXPECT_TRUE(audit.ok()) << audit.ToString();
}

}  // namespace kavern::tiers
