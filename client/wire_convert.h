// Between the library's types and messages.
#ifndef KAVERN_CLIENT_WIRE_CONVERT_H_
#define KAVERN_CLIENT_WIRE_CONVERT_H_

#include <span>
#include <string>

#include "base/block_key.h"
#include "base/namespace_spec.h"
#include "base/tier.h"
#include "kavern/v1/types.pb.h"

namespace kavern::client {

// 16 bytes each, back to back.
std::string PackKeys(std::span<const BlockKey> keys);
std::string PackKey(const BlockKey& key);
std::string PackFingerprint(const NamespaceFingerprint& fingerprint);

// kNone for a number that means none.
Tier TierOf(int number);

void FillSpec(const NamespaceSpec& spec, v1::NamespaceSpec* message);

}  // namespace kavern::client

#endif  // KAVERN_CLIENT_WIRE_CONVERT_H_
