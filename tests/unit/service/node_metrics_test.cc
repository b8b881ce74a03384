#include "service/node_metrics.h"

#include <prometheus/text_serializer.h>

#include <string>

#include "gmock/gmock.h"

namespace kavern::service {
namespace {

using testing::HasSubstr;

TEST(NodeMetricsTest, PredictionsOfTurnsAreAHistogramByWhatWasPredicted) {
  tiers::StoreCounters counters;
  counters.predictions.prefill.Count(0.1);
  counters.predictions.prefill.Count(1.0);
  counters.predictions.prefill.Count(1.05);
  counters.predictions.tiers[static_cast<std::size_t>(Tier::kNvme)].Count(100);
  const std::string text = prometheus::TextSerializer().Serialize(StoreMetrics({}, counters));
  const std::string name = "kavern_turn_actual_per_predicted";
  EXPECT_THAT(text, HasSubstr(name + "_count{what=\"prefill\"} 3\n"));
  EXPECT_THAT(text, HasSubstr(name + "_sum{what=\"prefill\"} 2.15"));
  EXPECT_THAT(text, HasSubstr(name + "_bucket{what=\"prefill\",le=\"0.25\"} 1\n"));
  EXPECT_THAT(text, HasSubstr(name + "_bucket{what=\"prefill\",le=\"1\"} 2\n"));
  EXPECT_THAT(text, HasSubstr(name + "_bucket{what=\"nvme\",le=\"4\"} 0\n"));
  EXPECT_THAT(text, HasSubstr(name + "_bucket{what=\"nvme\",le=\"+Inf\"} 1\n"));
  EXPECT_THAT(text, HasSubstr(name + "_count{what=\"ram\"} 0\n"));
}

}  // namespace
}  // namespace kavern::service
