#include "tiers/policy/eviction_policy.h"

#include "tiers/policy/leaf_first_lru.h"

namespace kavern::tiers {

std::vector<std::string> KnownEvictionPolicies() {
  return {"lru"};
}

std::unique_ptr<EvictionPolicy> MakeEvictionPolicy(std::string_view name) {
  if (name == "lru") return std::make_unique<LeafFirstLru>();
  return nullptr;
}

}  // namespace kavern::tiers
