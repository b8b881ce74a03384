// Online fit of what something costs: milliseconds as a sum of terms, each times a coefficient that
// is not negative, by exponentially weighted least squares. Pure: no clock, no thread, and memory
// of a few hundred bytes whatever it is fed.
#ifndef KAVERN_BASE_COST_FIT_H_
#define KAVERN_BASE_COST_FIT_H_

#include <array>
#include <cstdint>
#include <optional>

namespace kavern {

// How it weighs:
//
// - A sample counts 1 - 1/kWindow of the one after it: the fit follows what drifts.
// - Errors are relative (a sample weighs 1 / the square of its milliseconds, or of the predicted
//   ones where those are more): 10 % of a short one matters as much as 10 % of a long one, and
//   neither a stall nor a lucky sample outweighs the others.
// - What the samples do not tell apart is explained by the `main` term: samples of one length only
//   say what a token or a byte costs, never that it costs nothing.
// - A sample kSurpriseFactor times off what the others predict is set aside; after kSurprisesMax of
//   them in a row it is the others that are wrong, and the fit begins anew with these. Of what is
//   unlike all samples so far nothing is predicted well, so nothing of it is set aside.
class CostFit {
 public:
  static constexpr int kTermsMax = 3;
  static constexpr double kWindow = 64;  // samples
  static constexpr double kSurpriseFactor = 8;
  static constexpr int kSurprisesMax = 8;
  // Fewer samples are no measurement.
  static constexpr std::uint64_t kMeasuredFrom = 4;

  using Terms = std::array<double, kTermsMax>;  // those that the fit does not have are 0

  // 2 or 3 terms, of which the first is 1 in every sample; `main` is not the first.
  CostFit(int term_count, int main);

  // `terms` are finite and not negative, that of `main` is above 0; `ms` is finite and above 0.
  // What the fit predicted before, if it was measured: for whoever compares.
  std::optional<double> Add(const Terms& terms, double ms);

  // Samples that it rests on: those since it began, or began anew, but for what was set aside.
  std::uint64_t samples() const { return samples_; }
  bool measured() const { return samples_ >= kMeasuredFrom; }
  const Terms& coefficients() const { return coefficients_; }
  double Predict(const Terms& terms) const;

 private:
  struct Sample {
    Terms terms{};
    double ms = 0;
  };

  bool IsFamiliar(const Terms& terms) const;
  void Take(const Sample& sample);
  void Solve();

  const int term_count_;
  const int main_;
  // Weighted sums: of products of terms, and of terms and milliseconds.
  std::array<Terms, kTermsMax> products_{};
  Terms results_{};
  Terms least_{};
  Terms most_{};
  Terms coefficients_{};
  std::uint64_t samples_ = 0;
  std::array<Sample, kSurprisesMax> set_aside_{};
  int set_aside_count_ = 0;
};

}  // namespace kavern

#endif  // KAVERN_BASE_COST_FIT_H_
