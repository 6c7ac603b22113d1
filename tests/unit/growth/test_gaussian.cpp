// Distances between Gaussians against their closed forms.
#include <gtest/gtest.h>

#include <cmath>

#include "src/core/random.h"
#include "src/train/growth/gaussian.h"

namespace amur {
namespace {

SymmetricMatrix random_covariance(int64_t n, uint64_t seed) {
  std::vector<double> rows;
  for (int64_t i = 0; i < 3 * n * n; ++i)
    rows.push_back(RandomKey(seed).normal(static_cast<uint64_t>(i)));
  return gaussian_of(rows, n, 0).covariance;
}

TEST(Gaussian, EigenvectorsGiveTheMatrixBack) {
  const int64_t n = 17;
  const SymmetricMatrix a = random_covariance(n, 1);
  const Eigen e = eigen(a);
  for (int64_t i = 0; i < n; ++i)
    for (int64_t j = 0; j < n; ++j) {
      double sum = 0, dot = 0;
      for (int64_t k = 0; k < n; ++k) {
        const auto at = [&](int64_t r, int64_t c) {
          return e.vectors[static_cast<size_t>(r * n + c)];
        };
        sum += at(i, k) * e.values[static_cast<size_t>(k)] * at(j, k);
        dot += at(k, i) * at(k, j);
      }
      EXPECT_NEAR(sum, a.at(i, j), 1e-13);
      EXPECT_NEAR(dot, i == j ? 1 : 0, 1e-13);
    }
}

TEST(Gaussian, OneCoordinate) {
  const Gaussian a{{1.0}, {1, {4.0}}}, b{{3.0}, {1, {9.0}}};
  const GaussianDistances d = distances(a, b);
  EXPECT_NEAR(d.kl, std::log(1.5) + (4.0 + 4.0) / 18 - 0.5, 1e-14);
  EXPECT_NEAR(d.bhattacharyya, 0.25 * 4 / 13.0 + 0.5 * std::log(13.0 / 12), 1e-14);
  EXPECT_NEAR(d.wasserstein, std::sqrt(4 + 1.0), 1e-14);
}

TEST(Gaussian, ManyCoordinates) {
  const int64_t n = 6;
  const std::vector<double> zero(static_cast<size_t>(n), 0.0);
  const Gaussian a{zero, random_covariance(n, 2)}, b{zero, random_covariance(n, 3)};
  const GaussianDistances same = distances(a, a), other = distances(a, b), back = distances(b, a);
  EXPECT_NEAR(same.kl, 0, 1e-13);
  EXPECT_NEAR(same.bhattacharyya, 0, 1e-13);
  EXPECT_NEAR(same.wasserstein, 0, 1e-6);  // the root of a rounding error
  EXPECT_GT(other.kl, 0.01);
  EXPECT_NEAR(other.bhattacharyya, back.bhattacharyya, 1e-13);
  EXPECT_NEAR(other.wasserstein, back.wasserstein, 1e-12);
  EXPECT_GT(std::abs(other.kl - back.kl), 1e-6);
  // b = 4 a: KL and W2 by hand.
  Gaussian wide = a;
  for (double& x : wide.covariance.values) x *= 4;
  double trace = 0;
  for (int64_t i = 0; i < n; ++i) trace += a.covariance.at(i, i);
  EXPECT_NEAR(distances(a, wide).kl, 0.5 * 6 * (0.25 - 1 + std::log(4.0)), 1e-12);
  EXPECT_NEAR(distances(a, wide).wasserstein, std::sqrt(trace), 1e-12);
}

}  // namespace
}  // namespace amur
