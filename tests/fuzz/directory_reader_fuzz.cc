// The client's reader of a directory segment that may hold anything: it ends, stays inside, and
// finds no key that does not stand in a slot of a bucket.
//
// The first byte says whether the header is made right first: without that little would get past
// it. Then come the header and the buckets, without the unused rest of the header's page.
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <vector>

#include "client/directory_reader.h"
#include "fuzz_input.h"

namespace {

// Searched without regard to where a key's buckets are.
bool StandsInSlot(std::span<const std::byte> buckets, const kavern::BlockKey& key) {
  using kavern::shm::DirectoryBucket;
  for (std::size_t at = 0; at + sizeof(DirectoryBucket) <= buckets.size();
       at += sizeof(DirectoryBucket)) {
    DirectoryBucket bucket;
    std::memcpy(&bucket, buckets.data() + at, sizeof(bucket));
    for (int slot = 0; slot < kavern::shm::kKeysPerBucket; ++slot) {
      if (bucket.tiers[slot] != 0 &&
          std::memcmp(bucket.keys[slot], key.bytes.data(), key.bytes.size()) == 0) {
        return true;
      }
    }
  }
  return false;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace kavern;  // NOLINT(google-build-using-namespace): a program of one file
  fuzz::Input input(data, size);
  const bool header_right = input.Take<std::uint8_t>() % 2 == 1;
  const auto bytes = input.rest();
  if (bytes.empty()) return 0;
  const auto head = bytes.first(std::min(bytes.size(), sizeof(shm::DirectoryHeader)));
  const auto buckets = bytes.subspan(head.size());
  UniqueFd fd(memfd_create("fuzz", MFD_CLOEXEC));
  fuzz::Require(fd.valid(), "memfd_create");
  const std::size_t mapped = shm::kDirectoryBucketsOffset + buckets.size();
  fuzz::Require(ftruncate(fd.get(), static_cast<off_t>(mapped)) == 0, "ftruncate");
  auto writable = Mapping::Map(fd.get(), mapped, Mapping::Access::kReadWrite);
  fuzz::Require(writable.ok(), "mmap");
  std::memcpy(writable->data(), head.data(), head.size());
  if (!buckets.empty()) {
    std::memcpy(writable->data() + shm::kDirectoryBucketsOffset, buckets.data(), buckets.size());
  }
  NamespaceFingerprint fingerprint;
  fingerprint.bytes.fill(7);
  if (header_right) {
    auto* header = reinterpret_cast<shm::DirectoryHeader*>(writable->data());
    header->magic = shm::kDirectoryMagic;
    header->version = shm::kShmVersion;
    header->generation = 1;
    std::memcpy(header->fingerprint, fingerprint.bytes.data(), fingerprint.bytes.size());
  }
  auto reader = client::DirectoryReader::Create(
      *Mapping::Map(fd.get(), mapped, Mapping::Access::kReadOnly), fingerprint, 1);
  if (!reader.ok()) return 0;
  std::vector<BlockKey> keys;
  for (std::size_t at = 0; at + sizeof(BlockKey) <= bytes.size() && keys.size() < 256; at += 8) {
    BlockKey key;
    std::memcpy(key.bytes.data(), bytes.data() + at, key.bytes.size());
    keys.push_back(key);
  }
  BlockKey absent;
  absent.bytes.fill(0xa5);
  keys.push_back(absent);
  for (const BlockKey& key : keys) {
    fuzz::Require(reader->Lookup(key) == 0 || StandsInSlot(buckets, key),
                  "a key that is in no slot is not found");
  }
  fuzz::Require(reader->MatchPrefix(keys) <= keys.size(), "no more match than were asked for");
  return 0;
}
