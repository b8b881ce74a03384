#include <nanobind/stl/string_view.h>

#include <algorithm>
#include <cmath>
#include <string>

#include "absl/strings/str_cat.h"
#include "client/python/bindings/bindings.h"
#include "client/python/bindings/handles.h"

namespace kavern::python {
namespace {

double Seconds(std::chrono::milliseconds duration) {
  return std::chrono::duration<double>(duration).count();
}

// None: 0, as the daemon is configured.
std::chrono::milliseconds TtlOf(std::optional<double> seconds) {
  if (!seconds.has_value()) return std::chrono::milliseconds(0);
  if (!(*seconds > 0)) {
    Refuse(absl::StrCat("ttl: got ", *seconds, ", expected None or seconds above 0"));
  }
  constexpr double kMilliseconds = 1e15;
  return std::chrono::milliseconds(
      std::max<std::int64_t>(1, std::llround(std::min(*seconds * 1000, kMilliseconds))));
}

ConversationTerms UpdateConversation(NamespaceHandle& handle, const std::string& name,
                                     const nb::bytes& leaf, std::uint64_t token_count,
                                     std::optional<std::uint32_t> priority,
                                     std::optional<double> ttl, Deadline deadline) {
  ConversationUpdate update;
  update.name = name;
  update.leaf = KeyOf("leaf", leaf);
  update.token_count = token_count;
  update.priority = priority;
  update.ttl = TtlOf(ttl);
  update.deadline = DeadlineOf(deadline);
  absl::StatusOr<ConversationTerms> terms;
  {
    nb::gil_scoped_release unlocked;
    terms = handle.ns->UpdateConversation(update);
  }
  return Take(std::move(terms));
}

ConversationInfo DescribeConversation(NamespaceHandle& handle, const std::string& name,
                                      Deadline deadline) {
  const auto wait = DeadlineOf(deadline);
  absl::StatusOr<ConversationInfo> info;
  {
    nb::gil_scoped_release unlocked;
    info = handle.ns->DescribeConversation(name, wait);
  }
  return Take(std::move(info));
}

}  // namespace

void BindConversations(nb::module_& module, nb::class_<NamespaceHandle>& ns) {
  nb::class_<ConversationTerms>(module, "ConversationTerms",
                                "What the daemon made of a conversation's update.")
      .def_ro("priority", &ConversationTerms::priority, "0 to 100, after clamping.")
      .def_prop_ro(
          "ttl", [](const ConversationTerms& terms) { return Seconds(terms.ttl); },
          "Seconds, after clamping.")
      .def_ro("updates", &ConversationTerms::updates, "Of this conversation, this one included.");
  nb::class_<ConversationInfo>(module, "ConversationInfo", "What the daemon knows of a name.")
      .def_prop_ro(
          "leaf", [](const ConversationInfo& info) { return BytesOf(info.leaf); },
          "Key of its last block, as it was told.")
      .def_prop_ro(
          "leaf_tier", [](const ConversationInfo& info) { return TierName(info.leaf_tier); },
          "'hbm', 'ram' or 'nvme'; 'none': evicted since.")
      .def_ro("token_count", &ConversationInfo::token_count, "Up to the end of the leaf.")
      .def_ro("priority", &ConversationInfo::priority)
      .def_prop_ro(
          "ttl", [](const ConversationInfo& info) { return Seconds(info.ttl); },
          "Seconds that are left of it.")
      .def_ro("updates", &ConversationInfo::updates)
      .def_prop_ro(
          "age", [](const ConversationInfo& info) { return Seconds(info.age); },
          "Seconds since the first update.")
      .def_prop_ro(
          "idle", [](const ConversationInfo& info) { return Seconds(info.idle); },
          "Seconds since the last.");
  nb::class_<ConversationLimits>(module, "ConversationLimits",
                                 "The daemon lowers to these what is beyond them.")
      .def_ro("priority_max", &ConversationLimits::priority_max)
      .def_prop_ro(
          "ttl_max", [](const ConversationLimits& limits) { return Seconds(limits.ttl_max); },
          "Seconds.")
      .def_prop_ro(
          "ttl_default",
          [](const ConversationLimits& limits) { return Seconds(limits.ttl_default); },
          "Seconds, where an update says none.");
  ns.def("update_conversation", &UpdateConversation, nb::arg("name"), nb::arg("leaf"),
         nb::arg("token_count"), nb::kw_only(), nb::arg("priority") = nb::none(),
         nb::arg("ttl") = nb::none(), nb::arg("deadline") = nb::none(),
         "Names the chain of blocks that ends with the key leaf, or says anew what the name means. "
         "token_count: up to the end of that block. priority: 0 to 100; None: 50, where blocks of "
         "no conversation are. ttl: seconds from now on; None: as the daemon is configured. Of a "
         "namespace's blocks in RAM those of a lower priority leave first, and those of a "
         "conversation that ended before all others. NotFoundError: the leaf is not cached (any "
         "more).");
  ns.def("describe_conversation", &DescribeConversation, nb::arg("name"), nb::kw_only(),
         nb::arg("deadline") = nb::none(),
         "NotFoundError: never named, ended by its TTL, or forgotten because there are too many.");
  ns.def_prop_ro(
      "conversation_limits",
      [](const NamespaceHandle& handle) { return handle.ns->conversation_limits(); },
      "As the daemon told when the namespace was opened last; no RPC.");
}

}  // namespace kavern::python
