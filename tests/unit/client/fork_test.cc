// A worker that forks while it uses the library: the child has the objects, but neither the threads
// nor the memory behind them, and its sockets are the parent's.
#include <sys/wait.h>
#include <unistd.h>

#include <functional>

#include "client/kavern/paged_kv.h"
#include "tests/unit/client/client_fixture.h"

namespace kavern {
namespace {

class ForkTest : public ClientTest {
 protected:
  ForkTest() : client_(Connect()), ns_(Open(*client_)), keys_(Keys(*ns_, 1, 4)) {
    EXPECT_TRUE(Store(*ns_, keys_).ok());
  }

  // What became of a child that ran `check`: its exit status, or a signal's number and 1000. The
  // alarm ends one that hangs.
  static int InChild(const std::function<bool()>& check) {
    const pid_t child = fork();
    if (child == 0) {
      alarm(20);
      _exit(check() ? 0 : 1);
    }
    int status = 0;
    EXPECT_EQ(waitpid(child, &status, 0), child);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
  }

  std::unique_ptr<Client> client_;
  std::shared_ptr<Namespace> ns_;
  std::vector<BlockKey> keys_;
};

TEST_F(ForkTest, AChildIsToldToMakeItsOwnClient) {
  EXPECT_EQ(InChild([&] {
              const bool told = absl::IsFailedPrecondition(client_->Ping()) &&
                                absl::IsFailedPrecondition(client_->WaitUntilAttached({})) &&
                                absl::IsFailedPrecondition(Store(*ns_, keys_).status()) &&
                                absl::IsFailedPrecondition(ns_->Fetch({.keys = keys_}).status());
              const bool plans = ns_->Plan({.keys = keys_, .token_count = 64}).ok() ||
                                 ns_->ReportPrefill({0, 64, std::chrono::seconds(1)}).ok();
              return told && !plans && ns_->Match(keys_) == 0 && !client_->connection().attached;
            }),
            0);
  EXPECT_EQ(Fetch(*ns_, keys_), AllOk(4));
}

// The memory of a lease is not mapped in the child: touching it would be its end.
TEST_F(ForkTest, AChildCannotTouchTheLeasesOfItsParent) {
  auto read = ns_->Fetch({.keys = keys_});
  auto write = ns_->BeginStore({.keys = Keys(*ns_, 2, 1)});
  ASSERT_TRUE(read.ok() && write.ok());
  std::vector<std::byte> payload(kPartBytes);
  const MutableBuffer target(payload);
  const ConstBuffer source(payload);
  EXPECT_EQ(InChild([&] {
              return read->bytes(0).empty() && write->bytes(0).empty() &&
                     absl::IsFailedPrecondition(read->CopyTo(0, {&target, 1})) &&
                     absl::IsFailedPrecondition(write->Fill(0, {&source, 1})) &&
                     absl::IsFailedPrecondition(write->SetChecksum(0, 1)) &&
                     absl::IsFailedPrecondition(write->Commit()) &&
                     absl::IsFailedPrecondition(read->Release());
            }),
            0);
  EXPECT_TRUE(read->CopyTo(0, {&target, 1}).ok());
  EXPECT_TRUE(write->Fill(0, {&source, 1}).ok());
  EXPECT_TRUE(write->Commit().ok());
}

// The daemon restarted, so that only the leases keep the attachment of the old one: its thread is
// not there to be joined in the child, and its socket would speak for the parent.
TEST_F(ForkTest, AChildThatDropsLeasesOfADeadDaemonNeitherHangsNorSpeaks) {
  auto read = ns_->Fetch({.keys = keys_});
  auto write = ns_->BeginStore({.keys = Keys(*ns_, 2, 1)});
  ASSERT_TRUE(read.ok() && write.ok());
  daemon_.Stop();
  daemon_.Start();
  ASSERT_TRUE(Eventually([&] { return client_->connection().attach_count == 2; }));
  EXPECT_EQ(InChild([&] {
              *read = FetchLease();
              *write = StoreLease();
              return true;
            }),
            0);
  std::vector<std::byte> payload(kPartBytes);
  const MutableBuffer target(payload);
  EXPECT_TRUE(read->CopyTo(3, {&target, 1}).ok());
  EXPECT_EQ(payload, Payload(keys_[3]));
}

TEST_F(ForkTest, AChildIsToldToMakeItsOwnPagedKv) {
  std::vector<std::byte> pages(4 * kPartBytes);
  const TensorLayout layout{.layers = {{pages.data(), kPartBytes, kPartBytes}}, .block_count = 4};
  auto paged = PagedKv::Create(ns_, {layout}, {});
  ASSERT_TRUE(paged.ok()) << paged.status();
  const auto begin_load = [&] {
    return (*paged)->BeginLoad({.groups = {{.keys = {keys_[0]}, .blocks = {0}}}}).status();
  };
  EXPECT_EQ(InChild([&] {
              const std::chrono::milliseconds patience(1000000);
              const auto store = (*paged)->BeginStore({.keys = {keys_[0]}, .blocks = {{0}}});
              (*paged)->Gather(patience);
              const bool told = absl::IsFailedPrecondition(begin_load()) &&
                                absl::IsFailedPrecondition(store.status()) &&
                                (*paged)->TakeResults(patience).empty() &&
                                (*paged)->Drain(patience);
              paged->reset();
              return told;
            }),
            0);
  EXPECT_TRUE(begin_load().ok());
  EXPECT_EQ((*paged)->TakeResults(std::chrono::seconds(20)).size(), 1U);
}

TEST_F(ForkTest, AChildMayEndTheClientAndTheParentGoesOn) {
  auto lease = ns_->Fetch({.keys = keys_});
  ASSERT_TRUE(lease.ok());
  EXPECT_EQ(InChild([&] {
              *lease = FetchLease();
              ns_.reset();
              client_.reset();
              return true;
            }),
            0);
  EXPECT_EQ(daemon_.leased_bytes(), 4 * kPartBytes);
  EXPECT_TRUE(lease->Release().ok());
  EXPECT_EQ(client_->connection().attach_count, 1U);
  EXPECT_EQ(Fetch(*ns_, keys_), AllOk(4));
}

}  // namespace
}  // namespace kavern
