// Random operations on a segment, compared with a map after each: by the writer's own view, by a
// reader of the raw words, and by counting anew how many keys each bucket turned away.
#include <gtest/gtest.h>

#include <map>
#include <random>
#include <vector>

#include "tests/unit/tiers/segment_reader.h"
#include "tests/unit/tiers/test_keys.h"
#include "tiers/directory/directory_segment.h"

namespace kavern::tiers {
namespace {

// Few homes, at the table's end, so that probes are long and wrap.
constexpr std::uint64_t kHomes = 5;
constexpr std::uint64_t kKeysPerHome = 12;
constexpr std::uint64_t kKeysExpected = 16;  // far fewer than there are, so that keys are refused

class DirectoryModel : public ::testing::Test {
 protected:
  DirectoryModel() {
    auto segment = DirectorySegment::Create(NamespaceFingerprint{}, 1, kKeysExpected);
    EXPECT_TRUE(segment.ok()) << segment.status();
    segment_ = *std::move(segment);
    auto mapping = Mapping::Map(segment_->fd(), segment_->size_bytes(), Mapping::Access::kReadOnly);
    EXPECT_TRUE(mapping.ok()) << mapping.status();
    reader_.emplace(*std::move(mapping));
    for (std::uint64_t i = 0; i < kHomes * kKeysPerHome; ++i) {
      keys_.push_back(KeyOfWords(reader_->bucket_count() - 2 + i % kHomes, i));
    }
  }

  // Recounts `passed` of every bucket from where the keys lie; each bucket must also be at rest.
  void CheckBuckets() {
    const std::uint32_t buckets = reader_->bucket_count();
    std::vector<std::uint64_t> passed(buckets, 0);
    std::uint64_t entries = 0;
    for (std::uint32_t at = 0; at < buckets; ++at) {
      const auto bucket = reader_->ReadBucket(at);
      ASSERT_TRUE(bucket.has_value()) << "bucket " << at << " was left in change";
      for (int slot = 0; slot < shm::kKeysPerBucket; ++slot) {
        if (bucket->tiers[slot] == 0) continue;
        ++entries;
        std::uint64_t home = 0;
        std::memcpy(&home, bucket->keys[slot], sizeof(home));
        for (std::uint32_t i = home & (buckets - 1); i != at; i = (i + 1) & (buckets - 1)) {
          ++passed[i];
          ++long_probes_;
        }
      }
    }
    for (std::uint32_t at = 0; at < buckets; ++at) {
      ASSERT_EQ(reader_->ReadBucket(at)->passed, passed[at]) << "bucket " << at;
    }
    ASSERT_EQ(entries, model_.size());
    ASSERT_EQ(segment_->entries(), model_.size());
    ASSERT_EQ(reader_->header().entries, model_.size());
  }

  void CheckKeys() {
    for (const BlockKey& key : keys_) {
      const auto it = model_.find(key);
      const std::uint8_t tiers = it == model_.end() ? 0 : it->second;
      ASSERT_EQ(segment_->Get(key), tiers) << key.ToHex();
      ASSERT_EQ(reader_->Lookup(key), tiers) << key.ToHex();
    }
  }

  std::unique_ptr<DirectorySegment> segment_;
  std::optional<SegmentReader> reader_;
  std::vector<BlockKey> keys_;
  std::map<BlockKey, std::uint8_t> model_;
  std::uint64_t long_probes_ = 0;
};

TEST_F(DirectoryModel, RandomOperationsAgreeWithAMap) {
  // 60 keys of five homes in the smallest table: refusals, overflow and reuse happen all the
  // time.
  constexpr unsigned kSeed = 20266;
  SCOPED_TRACE(kSeed);
  std::mt19937 random(kSeed);
  std::uint64_t refused = 0;
  for (int step = 0; step < 20'000; ++step) {
    SCOPED_TRACE(step);
    const BlockKey& key = keys_[random() % keys_.size()];
    if (random() % 5 < 2) {
      segment_->Erase(key);
      model_.erase(key);
    } else {
      const auto tiers = static_cast<std::uint8_t>(1 + random() % 7);
      const bool taken = segment_->Set(key, tiers);
      ASSERT_TRUE(taken || !model_.contains(key)) << "a present key was refused";
      if (taken) model_[key] = tiers;
      refused += !taken;
    }
    CheckBuckets();
    CheckKeys();
    if (HasFatalFailure()) return;
  }
  EXPECT_GT(refused, 100u);
  EXPECT_GT(long_probes_, 100'000u);
}

}  // namespace
}  // namespace kavern::tiers
