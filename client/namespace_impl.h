// An open namespace of a client: batches in, leases and copies out.
#ifndef KAVERN_CLIENT_NAMESPACE_IMPL_H_
#define KAVERN_CLIENT_NAMESPACE_IMPL_H_

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/mutex.h"
#include "client/client_impl.h"
#include "client/kavern/client.h"
#include "client/lease_state.h"

namespace kavern {

class NamespaceImpl final : public Namespace {
 public:
  // `client` must outlive it. Not usable before the first OpenOn.
  NamespaceImpl(ClientImpl& client, const NamespaceSpec& spec);

  // Opens the namespace in the session of `attachment` (nullptr: TCP), and waits for its directory.
  // FailedPrecondition when the fingerprint is not the one of the first time: keys that callers
  // hold would mean other blocks.
  absl::Status OpenOn(const std::shared_ptr<client::Attachment>& attachment,
                      std::chrono::milliseconds deadline);

  const NamespaceFingerprint& fingerprint() const override { return fingerprint_; }
  const NamespaceSpec& spec() const override { return spec_; }
  std::size_t Match(std::span<const BlockKey> keys,
                    std::chrono::milliseconds deadline) const override;
  std::vector<Tier> MatchTiers(std::span<const BlockKey> keys,
                               std::chrono::milliseconds deadline) const override;
  absl::StatusOr<StoreLease> BeginStore(const StoreRequest& request) override;
  absl::StatusOr<FetchLease> Fetch(const FetchRequest& request) override;
  absl::StatusOr<StoreResult> Store(const StoreRequest& request,
                                    std::span<const ConstBuffer> buffers) override;
  absl::StatusOr<FetchResult> FetchInto(const FetchRequest& request,
                                        std::span<const MutableBuffer> buffers) override;
  absl::StatusOr<TurnPlan> Plan(const PlanRequest& request) override;
  absl::Status ReportPrefill(const PrefillTiming& timing) override;
  absl::StatusOr<PrefetchProgress> Prefetch(const PrefetchRequest& request) override;
  absl::StatusOr<ConversationTerms> UpdateConversation(const ConversationUpdate& update) override;
  absl::StatusOr<ConversationInfo> DescribeConversation(
      const std::string& name, std::chrono::milliseconds deadline) override;
  ConversationLimits conversation_limits() const override;

 private:
  // The attachment to call with, once the namespace is open there.
  absl::StatusOr<std::shared_ptr<client::Attachment>> Ready() const;
  absl::Status CheckPart(std::uint32_t shard, std::uint32_t group) const;
  // Buffers per key. InvalidArgument where they do not divide, or a key's are not PartBytes long.
  template <typename Buffer>
  absl::StatusOr<std::size_t> PiecesPerKey(std::size_t keys, std::span<const Buffer> buffers,
                                           std::uint32_t group) const;
  bool UsesBytesPlane() const;
  // MatchTiers where there is no directory to look into: empty when the daemon does not answer.
  std::vector<Tier> MatchByCalls(std::span<const BlockKey> keys,
                                 std::chrono::milliseconds deadline) const;
  // Parts that became readable, by index into the request's keys.
  using OnReady = std::function<void(FetchLease::State&, std::span<const std::size_t>)>;
  // Calls `on_ready` on this thread, as parts become readable.
  absl::StatusOr<FetchLease> FetchEach(const FetchRequest& request, const OnReady& on_ready);

  // Keys of one request: what the daemon allows, and no more than a part of what the session may
  // pin, of which other threads need some, too.
  std::size_t KeysPerRequest(std::uint32_t group) const;
  // One request's worth: at most KeysPerRequest() keys.
  absl::StatusOr<StoreResult> StoreBatch(const StoreRequest& request,
                                         std::span<const ConstBuffer> buffers, std::size_t pieces);
  absl::StatusOr<FetchResult> FetchBatch(const FetchRequest& request,
                                         std::span<const MutableBuffer> buffers,
                                         std::size_t pieces);
  absl::StatusOr<StoreResult> PutBytes(const StoreRequest& request,
                                       std::span<const ConstBuffer> buffers, std::size_t pieces);
  absl::StatusOr<FetchResult> GetBytes(const FetchRequest& request,
                                       std::span<const MutableBuffer> buffers, std::size_t pieces);

  // What a fetch measured by itself.
  void ReportTransfers(std::span<const TransferSample> samples);

  ClientImpl& client_;
  const NamespaceSpec spec_;
  NamespaceFingerprint
      fingerprint_;  // set by the first OpenOn, before anybody else sees the object
  std::atomic<std::uint32_t> keys_per_request_max_ = 1;
  std::atomic<std::uint64_t> lease_bytes_max_ = 0;  // of the session; 0: the daemon does not tell

  std::atomic<std::uint32_t> refusals_ = 0;  // plans that left cached blocks aside
  // Shared with the thread that reports.
  const std::shared_ptr<client::TurnTimings> timings_ = std::make_shared<client::TurnTimings>();

  mutable Mutex mu_;
  std::weak_ptr<client::Attachment> opened_on_ KAVERN_GUARDED_BY(mu_);
  bool opened_ KAVERN_GUARDED_BY(mu_) = false;
  absl::Status open_status_ KAVERN_GUARDED_BY(mu_);
  ConversationLimits conversation_limits_ KAVERN_GUARDED_BY(mu_);
};

}  // namespace kavern

#endif  // KAVERN_CLIENT_NAMESPACE_IMPL_H_
