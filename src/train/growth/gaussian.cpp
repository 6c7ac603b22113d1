#include "src/train/growth/gaussian.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include "src/core/error.h"

namespace amur {
namespace {

double& element(std::vector<double>& m, int64_t n, int64_t i, int64_t j) {
  return m[static_cast<size_t>(i * n + j)];
}

// V diag(f(values)) V^T
template <class F>
SymmetricMatrix function_of(const Eigen& e, F&& f) {
  const auto n = static_cast<int64_t>(e.values.size());
  SymmetricMatrix result{n, std::vector<double>(static_cast<size_t>(n * n), 0.0)};
  for (int64_t k = 0; k < n; ++k) {
    const double value = f(e.values[static_cast<size_t>(k)]);
    for (int64_t i = 0; i < n; ++i) {
      const double left = value * e.vectors[static_cast<size_t>(i * n + k)];
      for (int64_t j = 0; j < n; ++j)
        element(result.values, n, i, j) += left * e.vectors[static_cast<size_t>(j * n + k)];
    }
  }
  return result;
}

// a b a, of symmetric matrices
SymmetricMatrix sandwich(const SymmetricMatrix& a, const SymmetricMatrix& b) {
  const int64_t n = a.n;
  const auto product = [n](const std::vector<double>& x, const std::vector<double>& y) {
    std::vector<double> z(static_cast<size_t>(n * n), 0.0);
    for (int64_t i = 0; i < n; ++i)
      for (int64_t k = 0; k < n; ++k) {
        const double left = x[static_cast<size_t>(i * n + k)];
        for (int64_t j = 0; j < n; ++j)
          element(z, n, i, j) += left * y[static_cast<size_t>(k * n + j)];
      }
    return z;
  };
  return {n, product(product(a.values, b.values), a.values)};
}

double trace_of_product(const SymmetricMatrix& a, const SymmetricMatrix& b) {
  return std::inner_product(a.values.begin(), a.values.end(), b.values.begin(), 0.0);
}

double trace(const SymmetricMatrix& a) {
  double sum = 0;
  for (int64_t i = 0; i < a.n; ++i) sum += a.at(i, i);
  return sum;
}

double log_determinant(const Eigen& e) {
  double sum = 0;
  for (double value : e.values) sum += std::log(value);
  return sum;
}

double form(const SymmetricMatrix& a, const std::vector<double>& x) {
  double sum = 0;
  for (int64_t i = 0; i < a.n; ++i)
    for (int64_t j = 0; j < a.n; ++j)
      sum += x[static_cast<size_t>(i)] * a.at(i, j) * x[static_cast<size_t>(j)];
  return sum;
}

double inverse(double x) {
  return 1 / x;
}

}  // namespace

Eigen eigen(SymmetricMatrix a) {
  const int64_t n = a.n;
  std::vector<double> v(static_cast<size_t>(n * n), 0.0);
  for (int64_t i = 0; i < n; ++i) element(v, n, i, i) = 1;
  std::vector<double>& m = a.values;
  constexpr int kMaxSweeps = 60;
  for (int sweep = 0; sweep < kMaxSweeps; ++sweep) {
    double off = 0, all = 0;
    for (int64_t i = 0; i < n; ++i)
      for (int64_t j = 0; j < n; ++j) {
        const double square = element(m, n, i, j) * element(m, n, i, j);
        all += square;
        if (i != j) off += square;
      }
    if (off <= 1e-30 * all) break;
    for (int64_t p = 0; p < n; ++p)
      for (int64_t q = p + 1; q < n; ++q) {
        const double apq = element(m, n, p, q);
        if (apq == 0) continue;
        const double theta = (element(m, n, q, q) - element(m, n, p, p)) / (2 * apq);
        const double t = std::copysign(1.0, theta) / (std::abs(theta) + std::hypot(theta, 1.0));
        const double c = 1 / std::hypot(t, 1.0), s = t * c;
        const auto turn = [c, s](double& x, double& y) {
          const double old = x;
          x = c * old - s * y;
          y = s * old + c * y;
        };
        for (int64_t k = 0; k < n; ++k) turn(element(m, n, k, p), element(m, n, k, q));
        for (int64_t k = 0; k < n; ++k) turn(element(m, n, p, k), element(m, n, q, k));
        for (int64_t k = 0; k < n; ++k) turn(element(v, n, k, p), element(v, n, k, q));
      }
  }
  std::vector<int64_t> order(static_cast<size_t>(n));
  std::iota(order.begin(), order.end(), 0);
  std::sort(order.begin(), order.end(),
            [&](int64_t i, int64_t j) { return element(m, n, i, i) < element(m, n, j, j); });
  Eigen e;
  e.vectors.resize(v.size());
  for (int64_t k = 0; k < n; ++k) {
    const int64_t from = order[static_cast<size_t>(k)];
    e.values.push_back(element(m, n, from, from));
    for (int64_t i = 0; i < n; ++i) element(e.vectors, n, i, k) = element(v, n, i, from);
  }
  return e;
}

Gaussian gaussian_of(const std::vector<double>& rows, int64_t width, double ridge) {
  const auto count = static_cast<int64_t>(rows.size()) / width;
  AMUR_CHECK(count > 0, "a Gaussian of no rows");
  Gaussian g;
  g.mean.assign(static_cast<size_t>(width), 0.0);
  for (size_t i = 0; i < rows.size(); ++i)
    g.mean[i % static_cast<size_t>(width)] += rows[i] / static_cast<double>(count);
  g.covariance = {width, std::vector<double>(static_cast<size_t>(width * width), 0.0)};
  std::vector<double> centred(static_cast<size_t>(width));
  for (int64_t r = 0; r < count; ++r) {
    for (int64_t i = 0; i < width; ++i)
      centred[static_cast<size_t>(i)] =
          rows[static_cast<size_t>(r * width + i)] - g.mean[static_cast<size_t>(i)];
    for (int64_t i = 0; i < width; ++i)
      for (int64_t j = 0; j < width; ++j)
        element(g.covariance.values, width, i, j) += centred[static_cast<size_t>(i)] *
                                                     centred[static_cast<size_t>(j)] /
                                                     static_cast<double>(count);
  }
  const double added = ridge * trace(g.covariance) / static_cast<double>(width);
  for (int64_t i = 0; i < width; ++i) element(g.covariance.values, width, i, i) += added;
  return g;
}

GaussianDistances distances(const Gaussian& a, const Gaussian& b) {
  AMUR_CHECK(a.covariance.n == b.covariance.n, "Gaussians of {} and {} coordinates", a.covariance.n,
             b.covariance.n);
  const int64_t n = a.covariance.n;
  std::vector<double> shift = a.mean;
  double squared_shift = 0;
  for (size_t i = 0; i < shift.size(); ++i) {
    shift[i] -= b.mean[i];
    squared_shift += shift[i] * shift[i];
  }
  SymmetricMatrix middle = a.covariance;
  for (size_t i = 0; i < middle.values.size(); ++i)
    middle.values[i] = (middle.values[i] + b.covariance.values[i]) / 2;
  const Eigen ea = eigen(a.covariance), eb = eigen(b.covariance), em = eigen(middle);
  const double log_a = log_determinant(ea), log_b = log_determinant(eb);
  const SymmetricMatrix b_inverse = function_of(eb, inverse);

  GaussianDistances d;
  d.kl = (trace_of_product(b_inverse, a.covariance) + form(b_inverse, shift) -
          static_cast<double>(n) + log_b - log_a) /
         2;
  d.bhattacharyya =
      form(function_of(em, inverse), shift) / 8 + (log_determinant(em) - (log_a + log_b) / 2) / 2;
  const SymmetricMatrix root =
      function_of(ea, [](double x) { return std::sqrt(std::max(x, 0.0)); });
  double cross = 0;
  for (double value : eigen(sandwich(root, b.covariance)).values)
    cross += std::sqrt(std::max(value, 0.0));
  d.wasserstein = std::sqrt(
      std::max(squared_shift + trace(a.covariance) + trace(b.covariance) - 2 * cross, 0.0));
  return d;
}

}  // namespace amur
