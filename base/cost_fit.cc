#include "base/cost_fit.h"

#include <algorithm>
#include <cmath>

namespace kavern {
namespace {

// How much the sums lean towards the main term alone, relative to the samples' own weight. Decides
// what samples leave open, and biases what they tell by about as little.
constexpr double kLean = 1e-5;
// Terms within this factor of what there were samples of are familiar.
constexpr double kFamiliarFactor = 2;

using Terms = CostFit::Terms;
using Matrix = std::array<Terms, CostFit::kTermsMax>;

// Solves for the terms in `subset`, the others 0, by Cholesky's method: `matrix` is positive
// definite, its diagonal above 1.
Terms SolveFor(unsigned subset, const Matrix& matrix, const Terms& right) {
  Matrix lower{};
  Terms half{};
  const auto in = [subset](int i) { return (subset >> i & 1U) != 0; };
  for (int i = 0; i < CostFit::kTermsMax; ++i) {
    if (!in(i)) continue;
    double sum = right[i];
    for (int j = 0; j <= i; ++j) {
      if (!in(j)) continue;
      double entry = matrix[i][j];
      for (int k = 0; k < j; ++k) entry -= lower[i][k] * lower[j][k];
      // Rounding must not make a root of nothing.
      lower[i][j] = i == j ? std::sqrt(std::max(entry, kLean / 2)) : entry / lower[j][j];
      if (j < i) sum -= lower[i][j] * half[j];
    }
    half[i] = sum / lower[i][i];
  }
  Terms solution{};
  for (int i = CostFit::kTermsMax - 1; i >= 0; --i) {
    if (!in(i)) continue;
    double sum = half[i];
    for (int j = i + 1; j < CostFit::kTermsMax; ++j) sum -= lower[j][i] * solution[j];
    solution[i] = sum / lower[i][i];
  }
  return solution;
}

}  // namespace

CostFit::CostFit(int term_count, int main) : term_count_(term_count), main_(main) {}

double CostFit::Predict(const Terms& terms) const {
  double ms = 0;
  for (int i = 0; i < term_count_; ++i) ms += coefficients_[i] * terms[i];
  return ms;
}

bool CostFit::IsFamiliar(const Terms& terms) const {
  for (int i = 1; i < term_count_; ++i) {
    if (terms[i] < least_[i] / kFamiliarFactor || terms[i] > most_[i] * kFamiliarFactor) {
      return false;
    }
  }
  return true;
}

std::optional<double> CostFit::Add(const Terms& terms, double ms) {
  if (!measured()) {
    Take({terms, ms});
    return std::nullopt;
  }
  const double predicted = Predict(terms);
  const bool surprises =
      IsFamiliar(terms) && (ms > predicted * kSurpriseFactor || ms < predicted / kSurpriseFactor);
  if (!surprises) {
    set_aside_count_ = 0;
    Take({terms, ms});
    return predicted;
  }
  set_aside_[set_aside_count_++] = {terms, ms};
  if (set_aside_count_ < kSurprisesMax) return predicted;
  products_ = {};
  results_ = {};
  samples_ = 0;
  set_aside_count_ = 0;
  for (const Sample& sample : set_aside_) Take(sample);
  return predicted;
}

void CostFit::Take(const Sample& sample) {
  const double scale = measured() ? std::max(sample.ms, Predict(sample.terms)) : sample.ms;
  const double weight = 1 / (scale * scale);
  constexpr double kKept = 1 - 1 / kWindow;
  for (int i = 0; i < term_count_; ++i) {
    for (int j = 0; j < term_count_; ++j) {
      products_[i][j] = kKept * products_[i][j] + weight * sample.terms[i] * sample.terms[j];
    }
    results_[i] = kKept * results_[i] + weight * sample.terms[i] * sample.ms;
    least_[i] = samples_ == 0 ? sample.terms[i] : std::min(least_[i], sample.terms[i]);
    most_[i] = samples_ == 0 ? sample.terms[i] : std::max(most_[i], sample.terms[i]);
  }
  ++samples_;
  Solve();
}

// Of few terms the best without a negative coefficient is found by trying which are 0.
void CostFit::Solve() {
  // In units in which every term's sum of squares is 1: what is a token and what is its square
  // differ by many powers of ten.
  Terms unit{};
  Matrix scaled{};
  Terms right{};
  unsigned present = 0;
  for (int i = 0; i < term_count_; ++i) {
    unit[i] = std::sqrt(products_[i][i]);
    if (unit[i] > 0) present |= 1U << i;
  }
  for (int i = 0; i < term_count_; ++i) {
    if ((present >> i & 1U) == 0) continue;
    for (int j = 0; j < term_count_; ++j) {
      if ((present >> j & 1U) != 0) scaled[i][j] = products_[i][j] / (unit[i] * unit[j]);
    }
    scaled[i][i] += kLean;
    right[i] = results_[i] / unit[i];
  }
  right[main_] *= 1 + kLean;  // towards what the main term would be alone

  Terms best{};
  double best_gain = 0;
  for (unsigned subset = 1; subset < 1U << term_count_; ++subset) {
    if ((subset & present) != subset) continue;
    const Terms solution = SolveFor(subset, scaled, right);
    if (std::any_of(solution.begin(), solution.end(), [](double z) { return !(z >= 0); })) continue;
    double gain = 0;
    for (int i = 0; i < term_count_; ++i) gain += right[i] * solution[i];
    if (gain <= best_gain) continue;
    best_gain = gain;
    best = solution;
  }
  for (int i = 0; i < term_count_; ++i) {
    coefficients_[i] = unit[i] > 0 ? best[i] / unit[i] : 0;
  }
}

}  // namespace kavern
