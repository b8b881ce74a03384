// Plans of turns, and the timings that they are made of.
#include <nanobind/stl/string_view.h>

#include <chrono>
#include <string>
#include <string_view>
#include <vector>

#include "absl/strings/str_replace.h"
#include "client/python/bindings/handles.h"

namespace kavern::python {
namespace {

TurnPlan Plan(NamespaceHandle& handle, const Keys& keys, std::uint64_t token_count,
              std::uint64_t engine_tokens, Deadline deadline) {
  const std::vector<BlockKey> block_keys = KeysOf(keys);
  const PlanRequest request{block_keys, token_count, engine_tokens, DeadlineOf(deadline)};
  absl::StatusOr<TurnPlan> plan;
  {
    nb::gil_scoped_release unlocked;
    plan = handle.ns->Plan(request);
  }
  return Take(std::move(plan));
}

void ReportPrefill(NamespaceHandle& handle, std::uint64_t begin_token, std::uint64_t end_token,
                   double seconds) {
  const PrefillTiming timing{begin_token, end_token, std::chrono::duration<double>(seconds)};
  absl::Status status;
  {
    nb::gil_scoped_release unlocked;
    status = handle.ns->ReportPrefill(timing);
  }
  if (!status.ok()) {  // by this call's names
    status = {status.code(),
              absl::StrReplaceAll(status.message(),
                                  {{"timing.duration in ms", "1000 * seconds"}, {"timing.", ""}})};
  }
  Check(status);
}

nb::dict SamplesOf(const TurnPlan& plan) {
  nb::dict samples;
  samples["prefill"] = plan.costs.prefill.samples;
  for (const Tier tier : {Tier::kRam, Tier::kNvme}) {
    const std::string_view name = TierName(tier);
    samples[nb::str(name.data(), name.size())] = plan.costs.of(tier).samples;
  }
  return samples;
}

}  // namespace

void BindPlan(nb::module_& module, nb::class_<NamespaceHandle>& ns) {
  nb::class_<PlanRange>(module, "PlanRange", "Tokens [begin_token, end_token) of a turn.")
      .def_ro("begin_token", &PlanRange::begin_token)
      .def_ro("end_token", &PlanRange::end_token)
      .def_ro("fetch", &PlanRange::fetch, "The recommendation: fetch them, else compute them.")
      .def_prop_ro(
          "tier", [](const PlanRange& range) { return TierName(range.tier); },
          "'hbm', 'ram' or 'nvme', where they are cached; 'none': nowhere.")
      .def_ro("fetch_ms", &PlanRange::fetch_ms,
              "Predicted milliseconds; None where there is nothing to fetch, or too few fetches "
              "were measured.")
      .def_ro("recompute_ms", &PlanRange::recompute_ms,
              "Predicted milliseconds; None where too few prefills were measured.")
      .def("__repr__", [](const PlanRange& range) {
        std::string text = "PlanRange(" + std::to_string(range.begin_token) + " to " +
                           std::to_string(range.end_token) + ", ";
        text += range.fetch ? "fetch from " : "compute, cached in ";
        return text + std::string(TierName(range.tier)) + ")";
      });
  nb::class_<TurnPlan>(module, "TurnPlan",
                       "What of a turn to fetch, from which tier, and what to compute.")
      .def_ro("ranges", &TurnPlan::ranges,
              "In order and without gaps, from what the engine has itself to the turn's end. What "
              "is recommended adds up to total_ms.")
      .def_ro("first_block", &TurnPlan::first_block,
              "Fetch keys[first_block : first_block + fetch_blocks].")
      .def_ro("fetch_blocks", &TurnPlan::fetch_blocks)
      .def_ro("total_ms", &TurnPlan::total_ms,
              "Predicted milliseconds of following the plan; None where a cost that it takes is "
              "not measured.")
      .def_ro("recompute_all_ms", &TurnPlan::recompute_all_ms,
              "Predicted milliseconds of computing all that the engine has not; None where too few "
              "prefills were measured.")
      .def_ro("measured", &TurnPlan::measured,
              "Prefill and every tier that has something of the turn were measured. False: all "
              "that is cached is recommended.")
      .def_ro("probe", &TurnPlan::probe,
              "All that is cached is recommended though it is not cheapest, so that it is measured "
              "once more.")
      .def_prop_ro("samples", &SamplesOf, nb::sig("def samples(self) -> dict[str, int]"),
                   "How many timings it rests on: of 'prefill', and of fetches from 'ram' and "
                   "'nvme'.");
  ns.def("plan", &Plan, nb::arg("keys"), nb::arg("token_count"), nb::arg("engine_tokens") = 0,
         nb::kw_only(), nb::arg("deadline") = nb::none(),
         "The plan of a turn of token_count tokens, of which the engine has the first "
         "engine_tokens itself. keys: of its full blocks from the first token on, those that may "
         "come from the cache. Read from shared memory, no RPC, but on TCP; a hint. While the "
         "daemon is away "
         "nothing is cached. Costs are measured by fetch_into and report_prefill, in all clients "
         "of the node. InvalidArgumentError: more keys than full blocks, engine_tokens above "
         "token_count, or more than 2**24 tokens.");
  ns.def("report_prefill", &ReportPrefill, nb::arg("begin_token"), nb::arg("end_token"),
         nb::arg("seconds"),
         "The engine computed the KV of tokens [begin_token, end_token) in so many seconds, that "
         "of the tokens before them being in place. Told in the background: never waits for the "
         "daemon. InvalidArgumentError names the field of what no machine can have measured.");
}

}  // namespace kavern::python
