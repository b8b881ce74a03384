// The fit against a reference that keeps every sample and descends, and against what real and
// hostile timings do to it.
#include "base/cost_fit.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

namespace kavern {
namespace {

using Terms = CostFit::Terms;

Terms Prefill(double from, double to) {
  return {1, to - from, to * to - from * from};
}

double Dot(const Terms& a, const Terms& b) {
  return a[0] * b[0] + a[1] * b[1] + a[2] * b[2];
}

// The same rules by other means: all samples are kept, and the least sum of squares is found by
// going down along one coefficient at a time. Without what is set aside.
class Reference {
 public:
  void Add(const Terms& terms, double ms) {
    const double scale =
        samples_.size() >= CostFit::kMeasuredFrom ? std::max(ms, Dot(coefficients_, terms)) : ms;
    for (Sample& sample : samples_) sample.weight *= 1 - 1 / CostFit::kWindow;
    samples_.push_back({terms, ms, 1 / (scale * scale)});
    Descend();
  }
  double Predict(const Terms& terms) const { return Dot(coefficients_, terms); }

 private:
  struct Sample {
    Terms terms;
    double ms;
    double weight;
  };

  void Descend() {
    Terms squares{};
    double main_result = 0;
    for (const Sample& s : samples_) {
      for (int i = 0; i < 3; ++i) squares[i] += s.weight * s.terms[i] * s.terms[i];
      main_result += s.weight * s.terms[1] * s.ms;
    }
    constexpr double kLean = 1e-5;
    const Terms leaned_to = {0, main_result / squares[1], 0};
    // Gradients from sums of products, so that a step costs the same for many samples.
    double products[3][3] = {};
    double results[3] = {};
    for (const Sample& s : samples_) {
      for (int i = 0; i < 3; ++i) {
        for (int j = 0; j < 3; ++j) products[i][j] += s.weight * s.terms[i] * s.terms[j];
        results[i] += s.weight * s.terms[i] * s.ms;
      }
    }
    for (int step = 0; step < 300000; ++step) {
      const int i = step % 3;
      double right = results[i] + kLean * squares[i] * leaned_to[i];
      for (int j = 0; j < 3; ++j) {
        if (j != i) right -= products[i][j] * coefficients_[j];
      }
      coefficients_[i] = std::max(0.0, right / (squares[i] * (1 + kLean)));
    }
  }

  std::vector<Sample> samples_;
  Terms coefficients_{};
};

// Within what it was shown, the fit and the reference say the same, whatever the noise.
TEST(CostFitTest, AgreesWithAReferenceThatKeepsEverySample) {
  std::mt19937 random(7);
  std::uniform_real_distribution<double> tokens(16, 8192);
  std::uniform_real_distribution<double> noise(0.7, 1.6);
  CostFit fit(3, 1);
  Reference reference;
  for (int i = 0; i < 40; ++i) {
    const double from = i % 3 == 0 ? 0 : tokens(random);
    const Terms terms = Prefill(from, from + tokens(random));
    const double ms = (4 + 0.03 * terms[1] + 1e-6 * terms[2]) * noise(random);
    fit.Add(terms, ms);
    reference.Add(terms, ms);
    if (i < 3) continue;
    for (const double to : {64.0, 1000.0, 8000.0}) {
      const double expected = reference.Predict(Prefill(0, to));
      EXPECT_NEAR(fit.Predict(Prefill(0, to)), expected, 0.02 * expected) << i << ", " << to;
    }
  }
}

TEST(CostFitTest, RecoversKnownCoefficientsFromNoisySamples) {
  std::mt19937 random(11);
  std::uniform_real_distribution<double> tokens(32, 16384);
  std::normal_distribution<double> noise(1, 0.03);
  CostFit fit(3, 1);
  for (int i = 0; i < 500; ++i) {
    const double from = i % 2 == 0 ? 0 : tokens(random);
    const Terms terms = Prefill(from, from + tokens(random));
    fit.Add(terms, (12 + 0.02 * terms[1] + 8e-7 * terms[2]) * noise(random));
  }
  EXPECT_NEAR(fit.coefficients()[1], 0.02, 0.004);
  EXPECT_NEAR(fit.coefficients()[2], 8e-7, 1.5e-7);
  for (const double to : {256.0, 2048.0, 16384.0}) {
    const double truth = 12 + 0.02 * to + 8e-7 * to * to;
    EXPECT_NEAR(fit.Predict(Prefill(0, to)), truth, 0.06 * truth) << to;
  }
}

TEST(CostFitTest, WithoutNoiseTheCoefficientsAreThoseOfTheSamples) {
  CostFit fit(2, 1);
  for (int i = 1; i <= 30; ++i) fit.Add({1, i * 1e6, 0}, 0.5 + i * 1e6 * 2e-7);
  EXPECT_NEAR(fit.coefficients()[0], 0.5, 0.5 * 1e-3);
  EXPECT_NEAR(fit.coefficients()[1], 2e-7, 2e-7 * 1e-3);
}

// All samples alike: many coefficients fit as well, and the one that is sensible elsewhere is
// chosen.
TEST(CostFitTest, SamplesOfOneLengthSayWhatATokenCosts) {
  CostFit fit(3, 1);
  for (int i = 0; i < 100; ++i) fit.Add(Prefill(0, 2048), i % 2 == 0 ? 95 : 105);
  EXPECT_NEAR(fit.Predict(Prefill(0, 2048)), 100, 3);
  EXPECT_NEAR(fit.Predict(Prefill(0, 4096)), 200, 6);
  EXPECT_NEAR(fit.Predict(Prefill(0, 16)), 0.8, 0.1);
  EXPECT_GT(fit.coefficients()[1], 0);
}

TEST(CostFitTest, NoCoefficientIsEverNegative) {
  std::mt19937 random(3);
  std::uniform_real_distribution<double> logarithm(-6, 12);
  for (int round = 0; round < 50; ++round) {
    CostFit fit(3, 1);
    for (int i = 0; i < 100; ++i) {
      const double from = std::exp(logarithm(random));
      fit.Add(Prefill(from, from + 1 + std::exp(logarithm(random))), std::exp(logarithm(random)));
      for (const double coefficient : fit.coefficients()) {
        ASSERT_TRUE(std::isfinite(coefficient) && coefficient >= 0) << coefficient;
      }
      ASSERT_GT(fit.Predict(Prefill(0, 100)), 0);
    }
  }
}

// Longer ones that took less do not make the fit promise that more is free.
TEST(CostFitTest, TimesThatFallWithLengthFitAConstant) {
  CostFit fit(3, 1);
  for (int i = 1; i <= 50; ++i) fit.Add(Prefill(0, 100.0 * i), 100 - i);
  EXPECT_NEAR(fit.Predict(Prefill(0, 2500)), 75, 15);
  EXPECT_GE(fit.Predict(Prefill(0, 10000)), fit.Predict(Prefill(0, 100)));
}

TEST(CostFitTest, FollowsWhatDrifts) {
  CostFit fit(2, 1);
  double slope = 1e-6;
  for (int i = 0; i < 2000; ++i) {
    slope *= 1.002;  // seven times in a thousand samples
    const double bytes = 1e6 * (1 + i % 7);
    fit.Add({1, bytes, 0}, 0.2 + slope * bytes);
  }
  EXPECT_NEAR(fit.Predict({1, 4e6, 0}), 0.2 + slope * 4e6, 0.2 * slope * 4e6);
}

// An engine's first step may compile for half a minute, and a disk may pause.
TEST(CostFitTest, AStallAmongTheFirstSamplesIsForgotten) {
  CostFit fit(3, 1);
  fit.Add(Prefill(0, 500), 30000);
  for (int i = 0; i < 10; ++i) fit.Add(Prefill(0, 500 + 10 * i), 50 + i);
  EXPECT_NEAR(fit.Predict(Prefill(0, 550)), 55, 6);
}

TEST(CostFitTest, SingleStallsChangeNothing) {
  CostFit fit(2, 1);
  for (int i = 0; i < 100; ++i) fit.Add({1, 1e6 * (1 + i % 5), 0}, 1.0 + i % 5);
  const auto before = fit.coefficients();
  for (int i = 0; i < CostFit::kSurprisesMax - 1; ++i) {
    EXPECT_NEAR(*fit.Add({1, 3e6, 0}, 9000), 3, 0.1);
  }
  EXPECT_EQ(fit.coefficients(), before);
  EXPECT_EQ(fit.samples(), 100U);
  fit.Add({1, 3e6, 0}, 3);
  for (int i = 0; i < CostFit::kSurprisesMax - 1; ++i) fit.Add({1, 3e6, 0}, 9000);
  EXPECT_NEAR(fit.Predict({1, 3e6, 0}), 3, 0.1);
}

// The machine is another one, or the fit began with rubbish.
TEST(CostFitTest, ManySurprisesInARowBeginTheFitAnew) {
  CostFit fit(2, 1);
  for (int i = 0; i < 1000; ++i) fit.Add({1, 1e6 * (1 + i % 5), 0}, 1e-3 * (1 + i % 5));
  for (int i = 0; i < CostFit::kSurprisesMax; ++i) fit.Add({1, 1e6 * (1 + i % 5), 0}, 1.0 + i % 5);
  EXPECT_TRUE(fit.measured());
  EXPECT_EQ(fit.samples(), static_cast<std::uint64_t>(CostFit::kSurprisesMax));
  EXPECT_NEAR(fit.Predict({1, 3e6, 0}), 3, 0.1);
}

// What is far longer than anything before is no surprise, whatever it takes.
TEST(CostFitTest, ALengthNeverSeenBeforeIsTakenAtItsWord) {
  CostFit fit(3, 1);
  for (int i = 0; i < 50; ++i) fit.Add(Prefill(0, 16), 5);
  fit.Add(Prefill(0, 32768), 800);
  EXPECT_EQ(fit.samples(), 51U);
  for (int i = 0; i < 20; ++i) {
    fit.Add(Prefill(0, 16), 5);
    fit.Add(Prefill(0, 32768), 800);
  }
  EXPECT_NEAR(fit.Predict(Prefill(0, 16)), 5, 0.5);
  EXPECT_NEAR(fit.Predict(Prefill(0, 32768)), 800, 80);
}

TEST(CostFitTest, PredictsNothingBeforeItIsMeasured) {
  CostFit fit(2, 1);
  for (std::uint64_t i = 0; i < CostFit::kMeasuredFrom; ++i) {
    EXPECT_FALSE(fit.measured());
    EXPECT_EQ(fit.Add({1, 1000, 0}, 1), std::nullopt);
  }
  EXPECT_TRUE(fit.measured());
  EXPECT_NEAR(*fit.Add({1, 1000, 0}, 1), 1, 1e-3);
}

}  // namespace
}  // namespace kavern
