// A daemon that does not answer: calls end by their deadline, and what they held comes back.
#include "tests/unit/client/client_fixture.h"

namespace kavern {
namespace {

using std::chrono::milliseconds;

// Calls bring a short deadline; the client's own is so long that a call that used it would show.
class DeadlineTest : public ClientTest {
 protected:
  static constexpr milliseconds kShort{40};
  static constexpr milliseconds kLong{120'000};
  static constexpr milliseconds kPatience{30'000};

  DeadlineTest() : client_(Connect(Options())), ns_(Open(*client_)), keys_(Keys(*ns_, 1, 4)) {}
  ~DeadlineTest() override { EXPECT_LT(Clock::System().Now() - started_, kPatience); }

  static ClientOptions Options() {
    ClientOptions options;
    options.deadline = kLong;
    return options;
  }

  absl::StatusOr<StoreLease> FilledLease() {
    auto lease = ns_->BeginStore({.keys = keys_});
    for (std::size_t i = 0; lease.ok() && i < keys_.size(); ++i) {
      const std::vector<std::byte> payload = Payload(keys_[i]);
      const ConstBuffer piece(payload);
      EXPECT_TRUE(lease->Fill(i, {&piece, 1}).ok());
    }
    return lease;
  }

  absl::StatusOr<FetchResult> FetchShort() {
    payload_.resize(keys_.size() * kPartBytes);
    std::vector<MutableBuffer> targets;
    for (std::size_t i = 0; i < keys_.size(); ++i) {
      targets.push_back(MutableBuffer(payload_).subspan(i * kPartBytes, kPartBytes));
    }
    return ns_->FetchInto({.keys = keys_, .deadline = kShort}, targets);
  }

  bool NothingIsLeased() {
    return Eventually([&] { return daemon_.leased_bytes() == 0; });
  }

  const SteadyTime started_ = Clock::System().Now();
  std::unique_ptr<Client> client_;
  std::shared_ptr<Namespace> ns_;
  std::vector<BlockKey> keys_;
  std::vector<std::byte> payload_;
};

TEST_F(DeadlineTest, AStoreOrFetchThatIsNotAnsweredEnds) {
  daemon_.LoseNextAnswer("BeginStore", /*carried_out=*/false);
  EXPECT_TRUE(
      absl::IsDeadlineExceeded(ns_->BeginStore({.keys = keys_, .deadline = kShort}).status()));
  daemon_.LoseNextAnswer("Fetch", /*carried_out=*/false);
  EXPECT_TRUE(absl::IsDeadlineExceeded(FetchShort().status()));
  EXPECT_TRUE(Store(*ns_, keys_).ok());
  EXPECT_EQ(Fetch(*ns_, keys_), AllOk(4));
}

// The daemon never heard of the commit, nor, at first, that the lease was given up.
TEST_F(DeadlineTest, ACommitThatDoesNotArriveStoresNothingAndGivesTheLeaseBack) {
  auto lease = FilledLease();
  ASSERT_TRUE(lease.ok());
  daemon_.LoseNextAnswer("CommitStore", /*carried_out=*/false);
  daemon_.LoseNextAnswer("AbortStore", /*carried_out=*/false);
  EXPECT_TRUE(absl::IsDeadlineExceeded(lease->Commit(kShort)));
  EXPECT_TRUE(lease->bytes(0).empty());
  EXPECT_TRUE(NothingIsLeased());
  EXPECT_EQ(ns_->Match(keys_), 0U);
  EXPECT_EQ(daemon_.calls("AbortStore"), 2U);
  EXPECT_TRUE(Store(*ns_, keys_).ok());
}

// The daemon did commit; only the caller does not know. All of it is stored then.
TEST_F(DeadlineTest, ACommitWhoseAnswerIsLostStoresAll) {
  auto lease = FilledLease();
  ASSERT_TRUE(lease.ok());
  daemon_.LoseNextAnswer("CommitStore", /*carried_out=*/true);
  EXPECT_TRUE(absl::IsDeadlineExceeded(lease->Commit(kShort)));
  EXPECT_TRUE(NothingIsLeased());
  EXPECT_TRUE(Eventually([&] { return ns_->Match(keys_) == keys_.size(); }));
  EXPECT_EQ(Fetch(*ns_, keys_), AllOk(4));
}

// The bytes were copied and verified before: the fetch is a success by its deadline, whenever the
// daemon hears that its lease is over.
TEST_F(DeadlineTest, AReleaseThatIsNotAnsweredDoesNotHoldUpAFetchOfDamagedBytes) {
  auto lease = FilledLease();
  ASSERT_TRUE(lease.ok());
  const MutableBuffer shared = lease->bytes(2);
  ASSERT_TRUE(lease->Commit().ok());
  shared[5] ^= std::byte{1};
  daemon_.LoseNextAnswer("Release", /*carried_out=*/false);
  const auto fetched = FetchShort();
  ASSERT_TRUE(fetched.ok());
  EXPECT_EQ(fetched->fetched_blocks, 3U);
  EXPECT_EQ(fetched->codes[2], absl::StatusCode::kDataLoss);
  EXPECT_TRUE(NothingIsLeased());
  EXPECT_TRUE(Eventually([&] { return daemon_.store().GetCounters().damaged_blocks == 1; }));
}

TEST_F(DeadlineTest, ADroppedFetchLeaseIsReleasedThoughTheFirstAttemptFails) {
  ASSERT_TRUE(Store(*ns_, keys_).ok());
  daemon_.FailNext("Release", absl::ResourceExhaustedError("too many calls"));
  { ASSERT_TRUE(ns_->Fetch({.keys = keys_}).ok()); }
  EXPECT_TRUE(NothingIsLeased());
  EXPECT_EQ(daemon_.calls("Release"), 2U);
}

TEST_F(DeadlineTest, APingOrAnOpeningThatIsNotAnsweredEnds) {
  daemon_.LoseNextAnswer("Ping", /*carried_out=*/true);
  EXPECT_TRUE(absl::IsDeadlineExceeded(client_->Ping(kShort)));
  daemon_.LoseNextAnswer("OpenNamespace", /*carried_out=*/true);
  EXPECT_TRUE(
      absl::IsDeadlineExceeded(client_->OpenNamespace(SmallSpec("other"), kShort).status()));
  EXPECT_TRUE(client_->Ping(kShort * 1000).ok());
  EXPECT_TRUE(client_->OpenNamespace(SmallSpec("other")).ok());
}

// The lease is over for the caller at once, and for the daemon as soon as it listens.
TEST_F(DeadlineTest, ALeaseWhoseEndIsNotAnsweredIsOverAllTheSame) {
  ASSERT_TRUE(Store(*ns_, keys_).ok());
  auto read = ns_->Fetch({.keys = keys_});
  auto write = ns_->BeginStore({.keys = Keys(*ns_, 2, 1)});
  ASSERT_TRUE(read.ok() && write.ok());
  daemon_.LoseNextAnswer("Release", /*carried_out=*/false);
  EXPECT_TRUE(absl::IsDeadlineExceeded(read->Release(kShort)));
  EXPECT_TRUE(read->bytes(0).empty());
  daemon_.LoseNextAnswer("AbortStore", /*carried_out=*/false);
  write->Abort(kShort);
  EXPECT_TRUE(write->bytes(0).empty());
  EXPECT_TRUE(NothingIsLeased());
  EXPECT_EQ(daemon_.calls("Release"), 2U);
  EXPECT_EQ(daemon_.calls("AbortStore"), 2U);
}

// So is one whose end the daemon refuses to hear, because it has too much to do or the connection
// broke.
TEST_F(DeadlineTest, ALeaseWhoseEndIsRefusedIsToldAgain) {
  ASSERT_TRUE(Store(*ns_, keys_).ok());
  for (const auto& refusal :
       {absl::ResourceExhaustedError("too many calls"), absl::UnavailableError("broken pipe")}) {
    auto read = ns_->Fetch({.keys = keys_});
    auto write = ns_->BeginStore({.keys = Keys(*ns_, 2, 1)});
    ASSERT_TRUE(read.ok() && write.ok());
    daemon_.FailNext("Release", refusal);
    EXPECT_EQ(read->Release(), refusal);
    daemon_.FailNext("AbortStore", refusal);
    write->Abort();
    EXPECT_TRUE(NothingIsLeased());
  }
}

// Reports of timings are worth nothing to who ends, but for a moment.
TEST_F(DeadlineTest, AClientClosesThoughTheDaemonDoesNotHearItsTimings) {
  const auto other = *client_->OpenNamespace(SmallSpec("other"));
  const PrefillTiming timing{0, 512, std::chrono::milliseconds(50)};
  daemon_.LoseNextAnswer("ReportTimings", /*carried_out=*/false);
  ASSERT_TRUE(ns_->ReportPrefill(timing).ok());
  ASSERT_TRUE(Eventually([&] { return daemon_.calls("ReportTimings") == 1; }));
  ASSERT_TRUE(other->ReportPrefill(timing).ok());
  client_->Close(kShort);  // in the middle of the first, which takes a second
  EXPECT_EQ(daemon_.calls("ReportTimings"), 1U);
}

// The daemon then keeps their memory until this process ends: it could still be read.
TEST_F(DeadlineTest, AClientClosesThoughTheDaemonDoesNotHearOfItsLeases) {
  ASSERT_TRUE(Store(*ns_, keys_).ok());
  daemon_.LoseNextAnswer("Release", /*carried_out=*/false);
  { ASSERT_TRUE(ns_->Fetch({.keys = keys_}).ok()); }
  ASSERT_TRUE(Eventually([&] { return daemon_.calls("Release") == 1; }));
  client_->Close(kShort);
  EXPECT_EQ(daemon_.calls("Release"), 1U);
  EXPECT_EQ(daemon_.leased_bytes(), 4 * kPartBytes);
  EXPECT_TRUE(absl::IsFailedPrecondition(client_->Ping()));
  EXPECT_TRUE(absl::IsFailedPrecondition(client_->WaitUntilAttached(kShort)));
  EXPECT_TRUE(absl::IsFailedPrecondition(client_->OpenNamespace(SmallSpec()).status()));
  EXPECT_TRUE(absl::IsFailedPrecondition(Store(*ns_, keys_).status()));
  EXPECT_FALSE(client_->connection().attached);
  client_->Close();
}

// What was given back before is heard of, also where the session is about to end.
TEST_F(DeadlineTest, AClientThatClosesHasSaidWhatItGaveBack) {
  ASSERT_TRUE(Store(*ns_, keys_).ok());
  { ASSERT_TRUE(ns_->Fetch({.keys = keys_}).ok()); }
  client_->Close();
  EXPECT_EQ(daemon_.calls("Release"), 1U);
  EXPECT_EQ(daemon_.leased_bytes(), 0U);
}

// While there is no daemon nothing is called, so nothing can wait.
TEST_F(DeadlineTest, WithoutADaemonNoCallIsMade) {
  ASSERT_TRUE(Store(*ns_, keys_).ok());
  daemon_.Stop();
  ASSERT_TRUE(Eventually([&] { return !client_->connection().attached; }));
  const auto calls = [&] {
    return daemon_.calls("Ping") + daemon_.calls("BeginStore") + daemon_.calls("Fetch") +
           daemon_.calls("OpenNamespace") + daemon_.calls("Match");
  };
  const std::uint64_t before = calls();
  EXPECT_TRUE(absl::IsUnavailable(client_->Ping()));
  EXPECT_TRUE(absl::IsUnavailable(Store(*ns_, keys_).status()));
  EXPECT_TRUE(absl::IsUnavailable(FetchShort().status()));
  EXPECT_TRUE(absl::IsUnavailable(client_->OpenNamespace(SmallSpec("other")).status()));
  EXPECT_EQ(ns_->Match(keys_), 0U);
  EXPECT_EQ(calls(), before);
}

}  // namespace
}  // namespace kavern
