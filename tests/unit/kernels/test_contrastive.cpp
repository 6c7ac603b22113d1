// The tile passes against plain loops, with masked entries, odd widths and extreme logits.
#include "kernels/contrastive.h"

#include "tests/unit/kernels/kernel_test.h"

namespace amur::test {
namespace {

class ContrastiveTest : public KernelTest {
 protected:
  // A tile of the case's type, with what its entries are in double.
  struct Tile {
    Tensor tensor;
    Doubles values;
  };
  Tile logits(int64_t m, int64_t n, double spread, double masked_share) const {
    const RandomKey key =
        RandomKey(17).fold(static_cast<uint64_t>(m)).fold(static_cast<uint64_t>(n));
    Doubles v(static_cast<size_t>(m * n));
    for (size_t i = 0; i < v.size(); ++i) {
      v[i] = (2 * key.uniform(2 * i) - 1) * spread;
      if (key.uniform(2 * i + 1) < masked_share) v[i] = static_cast<double>(kMaskedLogit);
    }
    Tensor t = from_doubles(v, {m, n}, dtype(), device());
    Doubles stored = to_doubles(t);
    return {std::move(t), std::move(stored)};
  }
  Tensor vector(int64_t n, double value) const { return filled({n}, dtype(), value); }
  Tensor maxima(int64_t n) const { return vector(n, static_cast<double>(kMaskedLogit)); }
  Tensor sums(int64_t n, double value = 0) const { return filled({n}, DType::f64, value); }
  double bound() const { return dtype() == DType::f32 ? 5e-6 : 5e-14; }
};

TEST_P(ContrastiveTest, StatisticsMergeToLogSumExp) {
  for (const int64_t n : {1, 5, 16, 127, 128, 300}) {
    for (const double spread : {1.0, 100.0}) {
      const int64_t m = 21;
      Tensor row_max = maxima(m), row_sum = sums(m);
      Tensor column_max = maxima(n), column_sum = sums(n);
      Doubles rows(m), columns(static_cast<size_t>(n));
      // Two tiles over the same rows and columns.
      for (const double masked : {0.0, 0.4}) {
        const Tile z = logits(m, n, spread, masked);
        contrastive_statistics(z.tensor, row_max, row_sum, column_max, column_sum);
        for (size_t i = 0; i < z.values.size(); ++i) {
          const double e = std::exp(z.values[i]);
          rows[i / columns.size()] += e;
          columns[i % columns.size()] += e;
        }
      }
      const auto check = [&](const Tensor& maximum, const Tensor& sum, const Doubles& e) {
        const Doubles largest = to_doubles(maximum), total = to_doubles(sum);
        for (size_t i = 0; i < e.size(); ++i)
          EXPECT_NEAR(std::log(total[i]) + largest[i], std::log(e[i]), bound());
      };
      check(row_max, row_sum, rows);
      check(column_max, column_sum, columns);
    }
  }
}

TEST_P(ContrastiveTest, MaskedRowsLeaveTheStatisticsAlone) {
  const Tensor z = filled({1, 33}, dtype(), static_cast<double>(kMaskedLogit));
  Tensor row_max = vector(1, 3), row_sum = sums(1, 2.5);
  contrastive_statistics(z, row_max, row_sum, {}, {});
  EXPECT_EQ(to_doubles(row_max)[0], 3);
  EXPECT_EQ(to_doubles(row_sum)[0], 2.5);
}

TEST_P(ContrastiveTest, SoftmaxGradient) {
  for (const int64_t n : {1, 7, 32, 61, 700}) {
    for (const bool both : {false, true}) {
      const int64_t m = 19;
      Tile g = logits(m, n, 30, 0.2);
      Doubles factors(m, 0.25);
      factors[2] = 0;
      const Tensor row_max = vector(m, 31), column_max = vector(n, 30.5);
      const Tensor row_factor = from_doubles(factors, {m}, dtype(), device());
      const Tensor column_factor = vector(n, 0.5);
      const double sum = contrastive_softmax_gradient(
          g.tensor, row_max, row_factor, both ? column_max.view() : ConstTensorView(),
          both ? column_factor.view() : ConstTensorView());
      const Doubles result = to_doubles(g.tensor);
      double expected_sum = 0, magnitude = 0;
      for (size_t i = 0; i < result.size(); ++i) {
        const double x = g.values[i];
        double e = factors[i / static_cast<size_t>(n)] * std::exp(x - 31);
        if (both) e += 0.5 * std::exp(x - 30.5);
        EXPECT_NEAR(result[i], e, bound() * e + 1e-37);
        expected_sum += e * x;
        magnitude += std::fabs(e * x);
      }
      EXPECT_NEAR(sum, expected_sum, bound() * magnitude);
    }
  }
}

TEST_P(ContrastiveTest, Sigmoid) {
  for (const auto& [m, n] : {std::pair<int64_t, int64_t>{9, 45}, {1, 1}, {3, 600}}) {
    Tile g = logits(m, n, 60, 0.2);
    const SigmoidSums sums = contrastive_sigmoid(g.tensor, -5, vector(m, 0.125));
    const Doubles result = to_doubles(g.tensor);
    double loss = 0, gradient = 0, gradient_z = 0, magnitude = 0;
    for (size_t i = 0; i < result.size(); ++i) {
      const double x = g.values[i], s = x - 5;
      const double e = 0.125 / (1 + std::exp(-s));
      EXPECT_NEAR(result[i], e, bound() * e + 1e-37);
      loss += 0.125 * (s > 0 ? s + std::log1p(std::exp(-s)) : std::log1p(std::exp(s)));
      gradient += e;
      gradient_z += e * x;
      magnitude += std::fabs(e * x);
    }
    EXPECT_NEAR(sums.loss, loss, bound() * loss);
    EXPECT_NEAR(sums.gradient, gradient, bound() * gradient);
    EXPECT_NEAR(sums.gradient_z, gradient_z, bound() * magnitude);
  }
}

// Threads split rows and columns but never a sum.
TEST_P(ContrastiveTest, SameBitsForAnyNumberOfThreads) {
  const int64_t m = 70, n = 400;
  expect_same_for_any_threads([&] {
    Tile z = logits(m, n, 40, 0.1);
    std::vector<Tensor> r;
    r.push_back(maxima(m));
    r.push_back(sums(m));
    r.push_back(maxima(n));
    r.push_back(sums(n));
    contrastive_statistics(z.tensor, r[0], r[1], r[2], r[3]);
    const double sum = contrastive_softmax_gradient(z.tensor, r[0], vector(m, 1), {}, {});
    r.push_back(filled({1}, DType::f64, sum));
    return r;
  });
}

AMUR_KERNEL_CASES(ContrastiveTest, all_targets(), DType::f32, DType::f64);

}  // namespace
}  // namespace amur::test
