// Fields of messages to the types that the daemon works with, and back. InvalidArgument names the
// field and what was expected. Pure.
#ifndef KAVERN_SERVICE_PROTO_CONVERSIONS_H_
#define KAVERN_SERVICE_PROTO_CONVERSIONS_H_

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/block_key.h"
#include "base/namespace_spec.h"
#include "base/turn_costs.h"
#include "kavern/v1/admin.pb.h"
#include "kavern/v1/kavern.pb.h"
#include "kavern/v1/types.pb.h"
#include "tiers/tiered_store.h"

namespace kavern::service {

// Checks what has no counterpart (unknown enumerators, counts past the layout's limits), then
// Validate().
absl::StatusOr<NamespaceSpec> FromProto(const v1::NamespaceSpec& proto);
void ToProto(const NamespaceSpec& spec, v1::NamespaceSpec* proto);

absl::StatusOr<NamespaceFingerprint> ParseFingerprint(const std::string& bytes);
// One key of exactly 16 bytes; `field` is its name in the request.
absl::StatusOr<BlockKey> ParseKey(std::string_view field, const std::string& bytes);
// Packed keys, 16 bytes each, 1 to keys_max of them.
absl::StatusOr<std::vector<BlockKey>> ParseKeys(const std::string& packed, std::uint64_t keys_max);
// Empty stands for the namespace's root.
absl::StatusOr<BlockKey> ParseParent(const std::string& bytes,
                                     const NamespaceFingerprint& fingerprint);
// nullopt: as the daemon is configured. InvalidArgument: no such class, or one that needs an NVMe
// tier where there is none.
absl::StatusOr<std::optional<tiers::DiskDurability>> ParseDurability(v1::Durability durability,
                                                                     bool has_disk);

// No more samples than a report may have, each with a tier that exists; TurnSamples::Validate
// checks the rest.
absl::StatusOr<TurnSamples> FromProto(const v1::ReportTimingsRequest& proto);
void ToProto(const TurnCosts& costs, v1::TurnCosts* proto);

void ToProto(const tiers::Extent& extent, v1::Extent* proto);
void ToProto(const tiers::NamespaceStatus& status, v1::NamespaceStatus* proto);
void ToProto(const tiers::StoreCounters& counters, v1::Counters* proto);
void ToProto(const tiers::StoreStatus& status, v1::RamStatus* proto);
void ToProto(const tiers::DiskStatus& status, v1::NvmeStatus* proto);
// One byte per key, of BeginStoreResponse.Outcome.
std::string PackOutcomes(const std::vector<tiers::StoreOutcome>& outcomes);
std::string Bytes(const NamespaceFingerprint& fingerprint);
std::string Bytes(const BlockKey& key);

}  // namespace kavern::service

#endif  // KAVERN_SERVICE_PROTO_CONVERSIONS_H_
