#include "service/session/tenant_map.h"

#include <algorithm>
#include <cstddef>
#include <string_view>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"

namespace kavern::service {
namespace {

constexpr std::size_t kTenantNameBytesMax = 63;  // of the 64 in the attach messages, with its NUL
// The kernel's "no id": chown(2) leaves an owner alone for it, so no process can have it.
constexpr std::uint64_t kIdMax = 0xfffffffe;

absl::Status CheckIds(std::string_view field, const std::vector<std::uint64_t>& ids) {
  for (const std::uint64_t id : ids) {
    if (id > kIdMax) {
      return absl::InvalidArgumentError(
          absl::StrCat(std::string(field), ": got ", id, ", expected an id of at most ", kIdMax));
    }
  }
  return absl::OkStatus();
}

absl::Status CheckRule(const std::vector<TenantRule>& rules, std::size_t index) {
  const TenantRule& rule = rules[index];
  const std::string where = absl::StrCat("tenants[", index, "]");
  if (absl::Status status = CheckTenantName(rule.name); !status.ok()) {
    return absl::InvalidArgumentError(
        absl::StrCat(where, ".name: ", std::string(status.message())));
  }
  for (std::size_t i = 0; i < index; ++i) {
    if (rules[i].name == rule.name) {
      return absl::InvalidArgumentError(
          absl::StrCat(where, ".name: \"", rule.name, "\" is the name of tenants[", i, "] too"));
    }
  }
  if (rule.uids.empty() && rule.gids.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat(where, " (", rule.name, "): expected at least one of uids and gids"));
  }
  if (absl::Status status = CheckIds(where + ".uids", rule.uids); !status.ok()) return status;
  return CheckIds(where + ".gids", rule.gids);
}

bool Contains(const std::vector<std::uint64_t>& ids, std::uint32_t id) {
  return std::find(ids.begin(), ids.end(), id) != ids.end();
}

}  // namespace

absl::Status CheckTenantName(const std::string& name) {
  const bool good = !name.empty() && name.size() <= kTenantNameBytesMax &&
                    std::all_of(name.begin(), name.end(), [](char c) {
                      return absl::ascii_isalnum(static_cast<unsigned char>(c)) || c == '.' ||
                             c == '_' || c == '-';
                    });
  if (good) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("got \"", absl::Utf8SafeCHexEscape(name),
                                                 "\", expected 1 to ", kTenantNameBytesMax,
                                                 " letters, digits, dots, dashes, underscores"));
}

absl::StatusOr<TenantMap> TenantMap::Create(std::vector<TenantRule> rules,
                                            std::vector<std::uint64_t> operator_uids,
                                            std::uint32_t daemon_uid) {
  for (std::size_t i = 0; i < rules.size(); ++i) {
    if (absl::Status status = CheckRule(rules, i); !status.ok()) return status;
  }
  if (absl::Status status = CheckIds("operators.uids", operator_uids); !status.ok()) return status;
  TenantMap map;
  map.rules_ = std::move(rules);
  if (map.rules_.empty()) map.rules_.push_back({"default", {daemon_uid}, {}});
  map.operator_uids_ = std::move(operator_uids);
  map.operator_uids_.push_back(daemon_uid);
  map.operator_uids_.push_back(0);
  return map;
}

absl::StatusOr<std::string> TenantMap::Resolve(const PeerCredentials& peer,
                                               const std::string& requested) const {
  bool has_tenant = false;
  for (const TenantRule& rule : rules_) {
    if (!Contains(rule.uids, peer.uid) && !Contains(rule.gids, peer.gid)) continue;
    if (requested.empty() || requested == rule.name) return rule.name;
    has_tenant = true;
  }
  if (has_tenant || !requested.empty()) {
    return absl::PermissionDeniedError(absl::StrCat("uid ", peer.uid, ", gid ", peer.gid,
                                                    " does not act for the requested tenant"));
  }
  if (IsOperator(peer)) return std::string();
  return absl::PermissionDeniedError(
      absl::StrCat("uid ", peer.uid, ", gid ", peer.gid, " acts for no tenant of this daemon"));
}

bool TenantMap::IsOperator(const PeerCredentials& peer) const {
  return Contains(operator_uids_, peer.uid);
}

}  // namespace kavern::service
