// RAM gives up what the disk has too, because an operator says so.

#include <algorithm>
#include <memory>
#include <vector>

#include "tiers/namespace_store.h"
#include "tiers/tiered_store.h"

namespace kavern::tiers {
namespace {

// Looked at with the lock held.
constexpr std::size_t kBlocksAtATime = 256;

}  // namespace

std::uint64_t TieredStore::Demote() {
  std::vector<std::shared_ptr<NamespaceStore>> all;
  {
    MutexLock lock(mu_);
    for (const auto& [fingerprint, ns] : namespaces_) all.push_back(ns);
  }
  std::uint64_t dropped = 0;
  for (const std::shared_ptr<NamespaceStore>& ns : all) {
    std::vector<BlockRef> blocks;
    {
      MutexLock lock(mu_);
      for (const BlockId id : ns->index().AllBlocks()) blocks.push_back(ns->index().RefOf(id));
    }
    for (std::size_t done = 0; done < blocks.size(); done += kBlocksAtATime) {
      MutexLock lock(mu_);
      const std::size_t end = std::min(blocks.size(), done + kBlocksAtATime);
      for (std::size_t i = done; i < end; ++i) dropped += ns->Demote(blocks[i]);
      SettleLocked(ns);
    }
  }
  return dropped;
}

}  // namespace kavern::tiers
