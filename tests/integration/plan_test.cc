// Plans over a real daemon with two tiers, and what others learn of what one worker measured.
#include <nlohmann/json.hpp>

#include "client/grpc_control_plane.h"
#include "gmock/gmock.h"
#include "tests/integration/node_test.h"
#include "tests/unit/service/attach_test_client.h"

namespace kavern {
namespace {

constexpr std::size_t kBlocks = 64;  // of 64 tokens and 64 KiB
constexpr std::size_t kBlocksInRam = 32;
constexpr std::uint64_t kTokens = kBlocks * 64 + 32;

class PlanNodeTest : public NodeTest {
 protected:
  void SetUp() override {
    StartDaemon({"ram.capacity=8MiB", "ram.region=1MiB", "nvme.catalog=" + directory() + "/catalog",
                 "nvme.devices=[{path: " + directory() + "/disk, capacity: 64MiB}]",
                 "nvme.segment=1MiB"});
    client_ = Connect();
    ns_ = *client_->OpenNamespace(TestSpec());
    keys_ = TestKeys(ns_->fingerprint(), 1, kBlocks);
    ASSERT_TRUE(StorePattern(*ns_, keys_).ok());
    ASSERT_TRUE(Admin()->Quiesce().ok());
    ASSERT_TRUE(Admin()->Demote().ok());
    ASSERT_TRUE(ns_->Prefetch({.keys = std::span(keys_).first(kBlocksInRam)}).ok());
  }

  // As a worker that measured a slow disk.
  void ReportTransfers(double ram_ms_per_block, double nvme_ms_per_block) {
    service::AttachTestClient attach;
    const auto welcome = attach.Attach(socket_path() + shm::kAttachSuffix);
    ASSERT_TRUE(welcome.has_value());
    const client::CallContext context = {
        std::string(reinterpret_cast<const char*>(welcome->session_token),
                    sizeof(welcome->session_token)),
        Clock::System().Now() + std::chrono::seconds(20)};
    const auto control = *client::MakeGrpcControlPlane("unix:" + socket_path());
    v1::OpenNamespaceRequest open;
    open.mutable_spec()->set_model("test-model");
    v1::KvLayout* layout = open.mutable_spec()->mutable_layout();
    layout->set_dtype(v1::KV_DTYPE_INT8);
    layout->set_tokens_per_block(64);
    layout->set_shard_count(1);
    v1::LayerGroup* group = layout->add_groups();
    group->set_kind(v1::LAYER_GROUP_KIND_FULL_ATTENTION);
    group->set_layer_count(4);
    group->set_kv_heads(2);
    group->set_head_dim(TestSpec().layout.groups[0].head_dim);
    v1::OpenNamespaceResponse opened;
    ASSERT_TRUE(control->OpenNamespace(context, open, &opened).ok());
    v1::ReportTimingsRequest report;
    report.set_fingerprint(opened.fingerprint());
    for (int blocks = 1; blocks <= 40; ++blocks) {
      for (const v1::Tier tier : {v1::TIER_RAM, v1::TIER_NVME}) {
        v1::TransferTiming* timing = report.add_transfers();
        timing->set_tier(tier);
        timing->set_bytes(static_cast<std::uint64_t>(blocks) * kBlockBytes);
        timing->set_ms(blocks * (tier == v1::TIER_RAM ? ram_ms_per_block : nvme_ms_per_block));
      }
    }
    v1::ReportTimingsResponse answer;
    const absl::Status status = control->ReportTimings(context, report, &answer);
    ASSERT_TRUE(status.ok()) << status;
  }
  TurnPlan PlanOf(Namespace& ns) {
    auto plan = ns.Plan({.keys = keys_, .token_count = kTokens});
    EXPECT_TRUE(plan.ok()) << plan.status();
    return *std::move(plan);
  }

  std::unique_ptr<Client> client_;
  std::shared_ptr<Namespace> ns_;
  std::vector<BlockKey> keys_;
};

TEST_F(PlanNodeTest, BlocksOnADiskThatIsSlowerThanComputingAreComputed) {
  const TurnPlan before = PlanOf(*ns_);
  EXPECT_FALSE(before.measured);
  EXPECT_EQ(before.fetch_blocks, kBlocks) << "nothing is known against it";

  // A block takes 6.4 ms to compute, 0.1 ms from RAM, 30 ms from disk.
  ReportTransfers(0.1, 30);
  for (int i = 1; i <= 8; ++i) {
    ASSERT_TRUE(ns_->ReportPrefill({.end_token = std::uint64_t{500} * i,
                                    .duration = std::chrono::milliseconds(50 * i)})
                    .ok());
  }
  ASSERT_TRUE(Eventually([&] { return PlanOf(*ns_).costs.prefill.samples == 8; }));
  const TurnPlan plan = PlanOf(*ns_);
  EXPECT_TRUE(plan.measured);
  EXPECT_EQ(plan.fetch_blocks, kBlocksInRam);
  ASSERT_EQ(plan.ranges.size(), 3U);
  EXPECT_TRUE(plan.ranges[0].fetch);
  EXPECT_EQ(plan.ranges[0].tier, Tier::kRam);
  EXPECT_EQ(plan.ranges[0].end_token, kBlocksInRam * 64);
  EXPECT_NEAR(*plan.ranges[0].fetch_ms, 3.2, 0.3);
  EXPECT_FALSE(plan.ranges[1].fetch);
  EXPECT_EQ(plan.ranges[1].tier, Tier::kNvme);
  EXPECT_NEAR(*plan.ranges[1].fetch_ms, 960, 50);
  EXPECT_NEAR(*plan.ranges[1].recompute_ms, 204.8, 15);
  EXPECT_EQ(plan.ranges[2].tier, Tier::kNone);
  EXPECT_EQ(plan.ranges[2].end_token, kTokens);
  EXPECT_NEAR(*plan.total_ms, 3.2 + 208, 15);

  // Another worker, which has measured nothing, plans the same from its first turn on.
  const auto other_client = Connect();
  const auto other = *other_client->OpenNamespace(TestSpec());
  const TurnPlan same = PlanOf(*other);
  EXPECT_TRUE(same.measured);
  EXPECT_EQ(same.fetch_blocks, kBlocksInRam);
  EXPECT_EQ(*same.total_ms, *plan.total_ms);
  const Fetched fetched = FetchPattern(*other, std::span(keys_).first(same.fetch_blocks));
  EXPECT_EQ(fetched.ok, kBlocksInRam);
  EXPECT_EQ(fetched.wrong_bytes, 0U);

  const CommandResult shown =
      RunCommand({KAVERN_BINARY, "--address", address(), "namespaces", "--json"});
  ASSERT_EQ(shown.status, 0);
  const auto costs = nlohmann::json::parse(shown.output)["namespaces"][0]["costs"];
  EXPECT_EQ(costs["prefill"]["samples"], 8);
  EXPECT_NEAR(costs["nvme"]["ms_per_byte"].get<double>() * kBlockBytes, 30, 1);
  EXPECT_THAT(RunCommand({KAVERN_BINARY, "--address", address(), "namespaces"}).output,
              testing::HasSubstr("prefill of 4,096 tokens"));
}

// No one is told timings of a namespace of another's tenant or model.
TEST_F(PlanNodeTest, WhatWasMeasuredOfOneModelSaysNothingOfAnother) {
  ReportTransfers(0.1, 30);
  const auto other = *client_->OpenNamespace(TestSpec("another-model"));
  const TurnPlan plan = PlanOf(*other);
  EXPECT_EQ(plan.costs.of(Tier::kRam).samples, 0U);
  const TurnPlan again = PlanOf(**Connect()->OpenNamespace(TestSpec()));
  EXPECT_EQ(again.costs.of(Tier::kNvme).samples, 40U);
}

}  // namespace
}  // namespace kavern
