#include "tiers/leases.h"

#include "tiers/namespace_store.h"
#include "tiers/tiered_store.h"

namespace kavern::tiers {

NamespaceRef& NamespaceRef::operator=(NamespaceRef&& other) noexcept {
  if (this == &other) return *this;
  Reset();
  store_ = std::exchange(other.store_, nullptr);
  ns_ = std::move(other.ns_);
  return *this;
}

void NamespaceRef::Reset() {
  if (store_ != nullptr) store_->CloseNamespace(*this);
  store_ = nullptr;
  ns_.reset();
}

const NamespaceFingerprint& NamespaceRef::fingerprint() const {
  return ns_->fingerprint();
}
const NamespaceSpec& NamespaceRef::spec() const {
  return ns_->spec();
}
const std::string& NamespaceRef::tenant() const {
  return ns_->tenant();
}

ReadLease& ReadLease::operator=(ReadLease&& other) noexcept {
  if (this == &other) return *this;
  Reset();
  store_ = std::exchange(other.store_, nullptr);
  ns_ = std::move(other.ns_);
  group_ = other.group_;
  slot_bytes_ = other.slot_bytes_;
  parts_ = std::exchange(other.parts_, {});
  pinned_ = std::exchange(other.pinned_, {});
  return *this;
}

void ReadLease::Append(ReadLease more) {
  if (more.pinned_.empty()) return;
  if (pinned_.empty()) {
    *this = std::move(more);
    return;
  }
  parts_.insert(parts_.end(), more.parts_.begin(), more.parts_.end());
  pinned_.insert(pinned_.end(), more.pinned_.begin(), more.pinned_.end());
  more.parts_.clear();
  more.pinned_.clear();
}

void ReadLease::Reset() {
  if (!pinned_.empty()) store_->EndRead(*this);
  store_ = nullptr;
  ns_.reset();
  parts_.clear();
  pinned_.clear();
}

WriteLease& WriteLease::operator=(WriteLease&& other) noexcept {
  if (this == &other) return *this;
  Reset();
  store_ = std::exchange(other.store_, nullptr);
  ns_ = std::move(other.ns_);
  part_ = other.part_;
  durability_ = other.durability_;
  slot_bytes_ = other.slot_bytes_;
  done_ = std::exchange(other.done_, 0);
  grants_ = std::exchange(other.grants_, {});
  existing_ = std::exchange(other.existing_, {});
  return *this;
}

void WriteLease::Reset() {
  if (done_ < grants_.size()) store_->EndWrite(*this);
  store_ = nullptr;
  ns_.reset();
  done_ = 0;
  grants_.clear();
  existing_.clear();
}

}  // namespace kavern::tiers
