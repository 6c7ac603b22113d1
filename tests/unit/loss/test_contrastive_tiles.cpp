// The tile passes against plain loops, with masked entries, odd widths and extreme logits.
#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "kernels/contrastive.h"
#include "kernels/gemm.h"
#include "src/core/random.h"

namespace amur {
namespace {

template <class T>
class Tiles : public ::testing::Test {};
using Types = ::testing::Types<float, double>;
TYPED_TEST_SUITE(Tiles, Types);

template <class T>
Tensor logits(int64_t m, int64_t n, double spread, double masked_share) {
  Tensor t({m, n}, dtype_of<T>);
  const RandomKey key = RandomKey(17).fold(static_cast<uint64_t>(m)).fold(static_cast<uint64_t>(n));
  for (int64_t i = 0; i < m * n; ++i) {
    const auto at = static_cast<uint64_t>(i);
    t.as<T>()[i] = static_cast<T>((2 * key.uniform(2 * at) - 1) * spread);
    if (key.uniform(2 * at + 1) < masked_share) t.as<T>()[i] = static_cast<T>(kMaskedLogit);
  }
  return t;
}
template <class T>
Tensor filled(int64_t n, T value) {
  Tensor t({n}, dtype_of<T>);
  for (int64_t i = 0; i < n; ++i) t.as<T>()[i] = value;
  return t;
}
template <class T>
constexpr double kBound = std::is_same_v<T, float> ? 5e-6 : 5e-14;

TYPED_TEST(Tiles, StatisticsMergeToLogSumExp) {
  using T = TypeParam;
  for (const int64_t n : {1, 5, 16, 127, 128, 300}) {
    for (const double spread : {1.0, 100.0}) {
      const int64_t m = 21;
      Tensor row_max = filled<T>(m, static_cast<T>(kMaskedLogit)), row_sum = filled<double>(m, 0);
      Tensor column_max = filled<T>(n, static_cast<T>(kMaskedLogit)),
             column_sum = filled<double>(n, 0);
      std::vector<double> rows(m), columns(static_cast<size_t>(n));
      // Two tiles over the same rows and columns.
      for (const double masked : {0.0, 0.4}) {
        const Tensor z = logits<T>(m, n, spread, masked);
        contrastive_statistics(z, row_max, row_sum, column_max, column_sum);
        for (int64_t i = 0; i < m; ++i) {
          for (int64_t j = 0; j < n; ++j) {
            const double e = std::exp(static_cast<double>(z.as<T>()[i * n + j]));
            rows[static_cast<size_t>(i)] += e;
            columns[static_cast<size_t>(j)] += e;
          }
        }
      }
      const auto check = [](const Tensor& maximum, const Tensor& sum,
                            const std::vector<double>& e) {
        for (size_t i = 0; i < e.size(); ++i) {
          const double mine =
              std::log(sum.as<double>()[i]) + static_cast<double>(maximum.as<T>()[i]);
          EXPECT_NEAR(mine, std::log(e[i]), kBound<T>);
        }
      };
      check(row_max, row_sum, rows);
      check(column_max, column_sum, columns);
    }
  }
}

TYPED_TEST(Tiles, MaskedRowsLeaveTheStatisticsAlone) {
  using T = TypeParam;
  Tensor z = filled<T>(33, static_cast<T>(kMaskedLogit));
  Tensor row_max = filled<T>(1, T{3}), row_sum = filled<double>(1, 2.5);
  contrastive_statistics(z.view().reshape({1, 33}), row_max, row_sum, {}, {});
  EXPECT_EQ(row_max.as<T>()[0], T{3});
  EXPECT_EQ(row_sum.as<double>()[0], 2.5);
}

TYPED_TEST(Tiles, SoftmaxGradient) {
  using T = TypeParam;
  for (const int64_t n : {1, 7, 32, 61}) {
    for (const bool both : {false, true}) {
      const int64_t m = 19;
      const Tensor z = logits<T>(m, n, 30, 0.2);
      Tensor g = logits<T>(m, n, 30, 0.2);
      Tensor row_max = filled<T>(m, T{31}), row_factor = filled<T>(m, T{0.25});
      Tensor column_max = filled<T>(n, T{30.5}), column_factor = filled<T>(n, T{0.5});
      row_factor.as<T>()[2] = 0;
      const double sum = contrastive_softmax_gradient(g, row_max, row_factor,
                                                      both ? column_max.view() : TensorView(),
                                                      both ? column_factor.view() : TensorView());
      double expected_sum = 0, magnitude = 0;
      for (int64_t i = 0; i < m; ++i) {
        for (int64_t j = 0; j < n; ++j) {
          const double x = static_cast<double>(z.as<T>()[i * n + j]);
          double e = (i == 2 ? 0 : 0.25) * std::exp(x - 31);
          if (both) e += 0.5 * std::exp(x - 30.5);
          EXPECT_NEAR(static_cast<double>(g.as<T>()[i * n + j]), e, kBound<T> * e + 1e-37);
          expected_sum += e * x;
          magnitude += std::fabs(e * x);
        }
      }
      EXPECT_NEAR(sum, expected_sum, kBound<T> * magnitude);
    }
  }
}

TYPED_TEST(Tiles, Sigmoid) {
  using T = TypeParam;
  const int64_t m = 9, n = 45;
  const Tensor z = logits<T>(m, n, 60, 0.2);
  Tensor g = logits<T>(m, n, 60, 0.2);
  Tensor weight = filled<T>(m, T{0.125});
  const SigmoidSums sums = contrastive_sigmoid(g, -5, weight);
  double loss = 0, gradient = 0, gradient_z = 0, magnitude = 0;
  for (int64_t i = 0; i < m * n; ++i) {
    const double x = static_cast<double>(z.as<T>()[i]), s = x - 5;
    const double e = 0.125 / (1 + std::exp(-s));
    EXPECT_NEAR(static_cast<double>(g.as<T>()[i]), e, kBound<T> * e + 1e-37);
    loss += 0.125 * (s > 0 ? s + std::log1p(std::exp(-s)) : std::log1p(std::exp(s)));
    gradient += e;
    gradient_z += e * x;
    magnitude += std::fabs(e * x);
  }
  EXPECT_NEAR(sums.loss, loss, kBound<T> * loss);
  EXPECT_NEAR(sums.gradient, gradient, kBound<T> * gradient);
  EXPECT_NEAR(sums.gradient_z, gradient_z, kBound<T> * magnitude);
}

// Threads split rows and columns but never a sum.
TYPED_TEST(Tiles, SameBitsForAnyNumberOfThreads) {
  using T = TypeParam;
  const int64_t m = 70, n = 400;
  std::vector<double> results[2];
  for (int threads : {1, 2}) {
    set_compute_threads(threads);
    Tensor z = logits<T>(m, n, 40, 0.1);
    Tensor row_max = filled<T>(m, static_cast<T>(kMaskedLogit)), row_sum = filled<double>(m, 0);
    Tensor column_max = filled<T>(n, static_cast<T>(kMaskedLogit)),
           column_sum = filled<double>(n, 0);
    contrastive_statistics(z, row_max, row_sum, column_max, column_sum);
    auto& r = results[threads - 1];
    r.assign(row_sum.as<double>(), row_sum.as<double>() + m);
    r.insert(r.end(), column_sum.as<double>(), column_sum.as<double>() + n);
    Tensor factor = filled<T>(m, T{1});
    r.push_back(contrastive_softmax_gradient(z, row_max, factor, {}, {}));
  }
  set_compute_threads(1);
  EXPECT_EQ(results[0], results[1]);
}

}  // namespace
}  // namespace amur
