// Clients that turn against the memory they were given.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstring>
#include <string>

#include "client/grpc_control_plane.h"
#include "client/wire_convert.h"
#include "kavern/v1/kavern.pb.h"
#include "tests/integration/node_test.h"
#include "tests/unit/service/attach_test_client.h"

namespace kavern {
namespace {

using service::AttachTestClient;
using service::TestPacket;

// A client without the library: it has the descriptors themselves.
class HostileClientTest : public NodeTest {
 protected:
  void Start() {
    StartDaemon();
    client_ = Connect();
    ns_ = *client_->OpenNamespace(TestSpec());
    keys_ = TestKeys(ns_->fingerprint(), 1, 8);
    ASSERT_TRUE(StorePattern(*ns_, keys_).ok());

    const auto welcome = attacker_.Attach(socket_path() + ".attach");
    ASSERT_TRUE(welcome.has_value());
    context_ = {std::string(reinterpret_cast<const char*>(welcome->session_token), 16),
                Clock::System().Now() + std::chrono::seconds(60)};
    control_ = *client::MakeGrpcControlPlane("unix:" + socket_path());
    v1::OpenNamespaceRequest open;
    client::FillSpec(TestSpec(), open.mutable_spec());
    v1::OpenNamespaceResponse opened;
    ASSERT_TRUE(control_->OpenNamespace(context_, open, &opened).ok());
    auto directory = attacker_.ReceiveType(shm::AttachType::kDirectory);
    ASSERT_TRUE(directory.has_value());
    directory_ = *std::move(directory);
    v1::FetchRequest fetch;
    fetch.set_fingerprint(opened.fingerprint());
    fetch.set_keys(client::PackKeys(keys_));
    ASSERT_TRUE(
        control_
            ->Fetch(context_, fetch,
                    [this](const v1::FetchResponse& message) { leased_.MergeFrom(message); })
            .ok());
    auto region = attacker_.ReceiveType(shm::AttachType::kRegion);
    ASSERT_TRUE(region.has_value());
    region_ = *std::move(region);
  }

  void ExpectOthersAreServed() {
    EXPECT_EQ(ns_->Match(keys_), keys_.size());
    const Fetched fetched = FetchPattern(*ns_, keys_);
    EXPECT_EQ(fetched.ok, keys_.size());
    EXPECT_EQ(fetched.wrong_bytes, 0U);
  }

  std::unique_ptr<Client> client_;
  std::shared_ptr<Namespace> ns_;
  std::vector<BlockKey> keys_;
  AttachTestClient attacker_;
  client::CallContext context_;
  std::unique_ptr<client::ControlPlane> control_;
  TestPacket directory_;
  TestPacket region_;
  v1::FetchResponse leased_;
};

TEST_F(HostileClientTest, CannotTruncateOrGrowWhatItWasGiven) {
  Start();
  for (const TestPacket* given : {&region_, &directory_}) {
    struct stat before {};
    ASSERT_EQ(fstat(given->fd.get(), &before), 0);
    EXPECT_NE(ftruncate(given->fd.get(), 0), 0);
    EXPECT_NE(ftruncate(given->fd.get(), before.st_size * 2), 0);
    EXPECT_NE(fcntl(given->fd.get(), F_ADD_SEALS, F_SEAL_WRITE), 0);
    // A fresh open file description, with whatever rights /proc gives.
    const std::string path = "/proc/self/fd/" + std::to_string(given->fd.get());
    const UniqueFd reopened(open(path.c_str(), O_RDWR | O_CLOEXEC));
    if (reopened.valid()) {
      EXPECT_NE(ftruncate(reopened.get(), 0), 0);
      EXPECT_NE(ftruncate(reopened.get(), before.st_size * 2), 0);
    }
    struct stat after {};
    ASSERT_EQ(fstat(given->fd.get(), &after), 0);
    EXPECT_EQ(after.st_size, before.st_size);
  }
  ExpectOthersAreServed();
}

TEST_F(HostileClientTest, CannotWriteADirectory) {
  Start();
  const std::string path = "/proc/self/fd/" + std::to_string(directory_.fd.get());
  const UniqueFd reopened(open(path.c_str(), O_RDWR | O_CLOEXEC));
  for (const int fd : {directory_.fd.get(), reopened.get()}) {
    if (fd < 0) continue;
    EXPECT_EQ(mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0), MAP_FAILED);
    const char rubbish[64] = {1};
    EXPECT_LT(pwrite(fd, rubbish, sizeof(rubbish), 4096), 0);
    void* view = mmap(nullptr, 4096, PROT_READ, MAP_SHARED, fd, 0);
    ASSERT_NE(view, MAP_FAILED);
    EXPECT_NE(mprotect(view, 4096, PROT_READ | PROT_WRITE), 0);
    munmap(view, 4096);
  }
  ExpectOthersAreServed();
}

// A co-tenant overwrites three of eight blocks, which it may map. Those three are lost, and nothing
// else.
TEST_F(HostileClientTest, RubbishInARegionLosesTheBlocksOverwrittenAndNothingElse) {
  Start();
  ASSERT_EQ(leased_.ready_size(), static_cast<int>(keys_.size()));
  const auto body = region_.As<shm::RegionBody>();
  void* memory =
      mmap(nullptr, body.size_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, region_.fd.get(), 0);
  ASSERT_NE(memory, MAP_FAILED);
  const auto others = TestKeys(ns_->fingerprint(), 2, 8);
  ASSERT_TRUE(StorePattern(*ns_, others).ok());
  for (const int victim : {2, 5, 7}) {
    const v1::Extent& extent = leased_.ready(victim).extent();
    ASSERT_EQ(extent.region_id(), body.region_id);
    std::memset(static_cast<char*>(memory) + extent.offset() + 1000, 0xee, 3);
  }
  const Fetched fetched = FetchPattern(*ns_, keys_);
  EXPECT_EQ(fetched.wrong_bytes, 0U);
  for (std::size_t i = 0; i < keys_.size(); ++i) {
    const bool overwritten = i == 2 || i == 5 || i == 7;
    EXPECT_EQ(fetched.codes[i], overwritten ? absl::StatusCode::kDataLoss : absl::StatusCode::kOk)
        << i;
  }
  EXPECT_EQ(ns_->Match(keys_), 2U);
  const Fetched untouched = FetchPattern(*ns_, others);
  EXPECT_EQ(untouched.ok, others.size());
  EXPECT_EQ(untouched.wrong_bytes, 0U);
  EXPECT_EQ(Status().counters().damaged_blocks(), 3U);
  munmap(memory, body.size_bytes);
}

// It calls healthy blocks damaged: the daemon looks for itself.
TEST_F(HostileClientTest, AFalseReportOfDamageCostsNothing) {
  Start();
  v1::ReleaseRequest request;
  for (const BlockKey& key : keys_) {
    v1::ReleaseRequest::Suspect* suspect = request.add_suspects();
    suspect->set_fingerprint(client::PackFingerprint(ns_->fingerprint()));
    suspect->set_key(client::PackKey(key));
  }
  v1::ReleaseResponse response;
  ASSERT_TRUE(control_->Release(context_, request, &response).ok());
  EXPECT_EQ(response.damaged_dropped(), 0U);
  ExpectOthersAreServed();
}

// It never reads its attach socket, so announcements pile up: it is cut off, and the others are
// not.
TEST_F(HostileClientTest, ThatNeverReadsItsAttachSocketHoldsUpNobody) {
  Start();
  for (int i = 0; i < 300; ++i) {
    const auto ns = client_->OpenNamespace(TestSpec("model-" + std::to_string(i)));
    ASSERT_TRUE(ns.ok()) << ns.status();
    v1::OpenNamespaceRequest open;
    client::FillSpec(TestSpec("model-" + std::to_string(i)), open.mutable_spec());
    v1::OpenNamespaceResponse opened;
    (void)control_->OpenNamespace(context_, open, &opened);
    ASSERT_TRUE(StorePattern(**ns, TestKeys((*ns)->fingerprint(), 1, 1)).ok());
    ASSERT_TRUE((*Admin()->PurgeNamespace((*ns)->fingerprint())).blocks() <= 1);
  }
  const auto keys = TestKeys(ns_->fingerprint(), 7, 8);
  ASSERT_TRUE(StorePattern(*ns_, keys).ok());
  EXPECT_EQ(FetchPattern(*ns_, keys).wrong_bytes, 0U);
}

}  // namespace
}  // namespace kavern
