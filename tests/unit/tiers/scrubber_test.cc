// What the scrubber reads, and what becomes of damage that it finds.
//
// Says nothing of its rate.

#include <fcntl.h>
#include <unistd.h>

#include <cstdint>

#include "gtest/gtest.h"
#include "tests/unit/tiers/write_back_fixture.h"

namespace kavern::tiers {
namespace {

using ScrubberTest = WriteBackFixture;

TEST_F(ScrubberTest, TheScrubberFindsDamageBeforeAnybodyAsksForIt) {
  StartWithDisk();
  const NamespaceRef ns = Open(SpecOf("m"));
  StoreChain(ns, KeysOf(1, 10)).get();
  store_->Quiesce();
  const auto pass = [&] {
    std::uint64_t bytes = 0;
    while (const std::uint64_t read = store_->ScrubNext()) bytes += read;
    return bytes;
  };
  EXPECT_EQ(pass(), 10 * kBlockBytes);
  EXPECT_EQ(store_->GetCounters().scrub_passes, 1U);
  EXPECT_EQ(store_->GetCounters().scrub_damaged_blocks, 0U);
  // The payload of the third slot.
  const int file = open((directory_.path() / "disk").c_str(), O_WRONLY | O_CLOEXEC);
  const auto at = disk::SlotOffset(kSegmentBytes, 0, kBlockBytes, 2) + kDiskPage + 1234;
  EXPECT_EQ(pwrite(file, "!", 1, static_cast<off_t>(at)), 1);
  close(file);
  pass();
  EXPECT_EQ(store_->GetCounters().scrub_damaged_blocks, 1U);
  // RAM still had it: it is written once more, elsewhere or there.
  store_->Quiesce();
  EXPECT_EQ(BlocksOnDisk(), 10U);
  pass();
  EXPECT_EQ(store_->GetCounters().scrub_damaged_blocks, 1U);
  ExpectSound();
}

TEST_F(ScrubberTest, TheScrubberVerifiesWhatNobodyHasOpenedSinceTheStart) {
  StartWithDisk();
  {
    const NamespaceRef a = Open(SpecOf("a"));
    const NamespaceRef b = Open(SpecOf("b"));
    StoreChain(a, KeysOf(1, 3)).get();
    StoreChain(b, KeysOf(11, 4)).get();
    store_->Quiesce();
  }
  store_.reset();
  StartWithDisk();
  store_->Quiesce();
  std::uint64_t bytes = 0;
  while (const std::uint64_t read = store_->ScrubNext()) bytes += read;
  EXPECT_EQ(bytes, 7 * kBlockBytes);
  EXPECT_EQ(store_->GetCounters().scrub_damaged_blocks, 0U);
}

}  // namespace
}  // namespace kavern::tiers
