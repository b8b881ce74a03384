// A namespace's calls on conversations.
#include <chrono>
#include <cstring>

#include "base/status_macros.h"
#include "client/namespace_impl.h"
#include "client/wire_convert.h"

namespace kavern {

using client::Attachment;
using client::ClientCore;
using std::chrono::milliseconds;

absl::StatusOr<ConversationTerms> NamespaceImpl::UpdateConversation(
    const ConversationUpdate& update) {
  KAVERN_ASSIGN_OR_RETURN(const std::shared_ptr<Attachment> attachment, Ready());
  ClientCore& core = *client_.core();
  v1::UpdateConversationRequest request;
  request.set_fingerprint(client::PackFingerprint(fingerprint_));
  request.set_conversation(update.name);
  request.set_leaf(client::PackKey(update.leaf));
  request.set_token_count(update.token_count);
  if (update.priority.has_value()) request.set_priority(*update.priority);
  if (update.ttl.count() < 0) {
    return absl::InvalidArgumentError("ttl: expected 0 (as the daemon is configured) or more");
  }
  request.set_ttl_ms(static_cast<std::uint64_t>(update.ttl.count()));
  v1::UpdateConversationResponse response;
  KAVERN_RETURN_IF_ERROR(client_.Judge(
      attachment, core.control().UpdateConversation(core.Context(attachment.get(), update.deadline),
                                                    request, &response)));
  return ConversationTerms{response.priority(), milliseconds(response.ttl_ms()),
                           response.updates()};
}

absl::StatusOr<ConversationInfo> NamespaceImpl::DescribeConversation(const std::string& name,
                                                                     milliseconds deadline) {
  KAVERN_ASSIGN_OR_RETURN(const std::shared_ptr<Attachment> attachment, Ready());
  ClientCore& core = *client_.core();
  v1::DescribeConversationRequest request;
  request.set_fingerprint(client::PackFingerprint(fingerprint_));
  request.set_conversation(name);
  v1::DescribeConversationResponse response;
  KAVERN_RETURN_IF_ERROR(
      client_.Judge(attachment, core.control().DescribeConversation(
                                    core.Context(attachment.get(), deadline), request, &response)));
  ConversationInfo info;
  if (response.leaf().size() != BlockKey::kSize) {
    return absl::InternalError("leaf: the daemon sent none of 16 bytes");
  }
  std::memcpy(info.leaf.bytes.data(), response.leaf().data(), BlockKey::kSize);
  info.leaf_tier = client::TierOf(response.leaf_tier());
  info.token_count = response.token_count();
  info.priority = response.priority();
  info.ttl = milliseconds(response.ttl_ms());
  info.updates = response.updates();
  info.age = milliseconds(response.age_ms());
  info.idle = milliseconds(response.idle_ms());
  return info;
}

ConversationLimits NamespaceImpl::conversation_limits() const {
  MutexLock lock(mu_);
  return conversation_limits_;
}

}  // namespace kavern
