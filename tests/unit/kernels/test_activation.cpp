#include "kernels/activation.h"
#include "kernels/elementwise.h"
#include "tests/unit/kernels/kernel_test.h"

namespace amur::test {
namespace {

class ActivationTest : public KernelTest {};

constexpr ActivationKind kKinds[] = {ActivationKind::gelu, ActivationKind::gelu_tanh,
                                     ActivationKind::relu, ActivationKind::swiglu,
                                     ActivationKind::geglu};
constexpr double kPi = 3.14159265358979323846;

double gelu(double x) {
  return 0.5 * x * std::erfc(-x / std::sqrt(2.0));
}
double gelu_slope(double x) {
  return 0.5 * std::erfc(-x / std::sqrt(2.0)) + x * std::exp(-x * x / 2) / std::sqrt(2 * kPi);
}
double silu(double x) {
  return x / (1 + std::exp(-x));
}
double silu_slope(double x) {
  const double s = 1 / (1 + std::exp(-x));
  return s + x * s * (1 - s);
}

double value(ActivationKind kind, double x) {
  switch (kind) {
    case ActivationKind::gelu:
    case ActivationKind::geglu:
      return gelu(x);
    case ActivationKind::gelu_tanh:
      return 0.5 * x * (1 + std::tanh(std::sqrt(2 / kPi) * (x + 0.044715 * x * x * x)));
    case ActivationKind::relu:
      return std::max(x, 0.0);
    case ActivationKind::swiglu:
      return silu(x);
  }
  return 0;
}
double slope(ActivationKind kind, double x) {
  switch (kind) {
    case ActivationKind::gelu:
    case ActivationKind::geglu:
      return gelu_slope(x);
    case ActivationKind::gelu_tanh: {
      const double t = std::tanh(std::sqrt(2 / kPi) * (x + 0.044715 * x * x * x));
      return 0.5 * (1 + t) +
             0.5 * x * (1 - t * t) * std::sqrt(2 / kPi) * (1 + 3 * 0.044715 * x * x);
    }
    case ActivationKind::relu:
      return x > 0 ? 1 : 0;
    case ActivationKind::swiglu:
      return silu_slope(x);
  }
  return 0;
}

TEST_P(ActivationTest, MatchesTheDefinition) {
  for (const ActivationKind kind : kKinds) {
    for (const auto& [rows, width] :
         {std::pair<int64_t, int64_t>{1, 1}, {3, 5}, {17, 64}, {60, 333}}) {
      const int64_t halves = is_gated(kind) ? 2 : 1;
      const Tensor u = random_tensor({rows, halves, width}, dtype(), 1, 3);
      const Tensor dy = random_tensor({rows, width}, dtype(), 2);
      Tensor y({rows, width}, dtype(), device()), du({rows, halves, width}, dtype(), device());
      activation_forward(kind, u, y);
      activation_backward(kind, dy, u, du);
      const Doubles in = to_doubles(u), d = to_doubles(dy);
      Doubles y_expected(d.size()), du_expected(in.size());
      const size_t w = static_cast<size_t>(width);
      for (size_t t = 0; t < static_cast<size_t>(rows); ++t) {
        for (size_t j = 0; j < w; ++j) {
          const size_t at = t * static_cast<size_t>(halves) * w + j;
          const double gate = is_gated(kind) ? in[at + w] : 1;
          y_expected[t * w + j] = value(kind, in[at]) * gate;
          du_expected[at] = d[t * w + j] * gate * slope(kind, in[at]);
          if (is_gated(kind)) du_expected[at + w] = d[t * w + j] * value(kind, in[at]);
        }
      }
      const double tolerance = dtype() == DType::f32 ? 6e-6 : 2 * rounding(dtype());
      expect_near(y, y_expected, tolerance, "y");
      expect_near(du, du_expected, tolerance, "du");
      Tensor in_place({rows, halves, width}, dtype(), device());
      copy(in_place, u);
      activation_backward(kind, dy, in_place, in_place);
      EXPECT_TRUE(same_bits(in_place, du));
    }
  }
}

// The gradient of a bias in u, and the forward's result, beside the gradient of u: the same bits as
// by passes of their own.
TEST_P(ActivationTest, ExtrasBeside) {
  for (const ActivationKind kind : kKinds) {
    for (const auto& [rows, width] :
         {std::pair<int64_t, int64_t>{1, 1}, {7, 33}, {130, 64}, {65, 100}, {9, 520}}) {
      const int64_t u_width = is_gated(kind) ? 2 * width : width;
      const Tensor dy = random_tensor({rows, width}, dtype(), 1);
      Tensor u = random_tensor({rows, u_width}, dtype(), 2);
      Tensor du = empty({rows, u_width}, dtype()), one = empty({rows, u_width}, dtype());
      Tensor sums = random_tensor({u_width}, parameter(), 3);
      Tensor sums_apart = random_tensor({u_width}, parameter(), 3);
      const Doubles before = to_doubles(sums);
      activation_backward(kind, dy, u, one);
      accumulate_column_sums(0.25, one, sums_apart);
      Tensor y = empty({rows, width}, dtype()), value = empty({rows, width}, dtype());
      activation_forward(kind, u, value);
      activation_backward(kind, dy, u, du, {.y = y, .sink = sums, .scale = 0.25});
      EXPECT_TRUE(same_bits(du, one)) << rows << " " << width;
      EXPECT_TRUE(same_bits(y, value)) << rows << " " << width;
      EXPECT_TRUE(same_bits(sums, sums_apart)) << rows << " " << width;
      Doubles expected = before;
      const Doubles gradient = to_doubles(du);
      for (size_t i = 0; i < gradient.size(); ++i)
        expected[i % static_cast<size_t>(u_width)] += 0.25 * gradient[i];
      expect_near(sums, expected, 60 * rounding(parameter()) * std::sqrt(rows), "bias");
      // In place of u and of dy.
      Tensor d = empty({rows, width}, dtype());
      copy(d, dy);
      activation_backward(kind, d, u, u, {.y = d});
      EXPECT_TRUE(same_bits(u, du));
      EXPECT_TRUE(same_bits(d, value));
    }
  }
}

TEST_P(ActivationTest, TailsAreExact) {
  const Doubles points = {-1e4, -200, -90, -30, -12, 0, 12, 30, 90, 200, 1e4};
  const Shape shape{1, static_cast<int64_t>(points.size())};
  for (const ActivationKind kind :
       {ActivationKind::gelu, ActivationKind::gelu_tanh, ActivationKind::relu}) {
    const Tensor u = from_doubles(points, shape, dtype(), device()),
                 one = filled(shape, dtype(), 1);
    Tensor y(shape, dtype(), device()), du(shape, dtype(), device());
    activation_forward(kind, u, y);
    activation_backward(kind, one, u, du);
    const Doubles in = to_doubles(u);
    for (size_t i = 0; i < in.size(); ++i) {
      const double limit = std::max(in[i], 0.0);
      EXPECT_NEAR(to_doubles(y)[i], limit, 2e-7 * std::abs(in[i])) << in[i];
      const double slope_limit = in[i] > 0 ? 1 : 0;
      if (in[i] != 0) {
        EXPECT_NEAR(to_doubles(du)[i], slope_limit, 3e-7) << in[i];
      }
    }
  }
}

// The approximations of f32, over their whole range.
TEST_P(ActivationTest, ErrorBoundOfTheNormalDistribution) {
  const int64_t n = 40001;
  Doubles points(static_cast<size_t>(n));
  for (size_t i = 0; i < points.size(); ++i)
    points[i] = -10 + 20.0 * static_cast<double>(i) / 40000;
  const Tensor u = from_doubles(points, {1, n}, dtype(), device()),
               one = filled({1, n}, dtype(), 1);
  Tensor y({1, n}, dtype(), device()), du({1, n}, dtype(), device());
  activation_forward(ActivationKind::gelu, u, y);
  activation_backward(ActivationKind::gelu, one, u, du);
  const double bound = dtype() == DType::f64 ? 1e-15 : 2e-7;
  const double stored = dtype() == DType::f64 ? 0 : rounding(dtype());
  const Doubles in = to_doubles(u), value = to_doubles(y), slope = to_doubles(du);
  for (size_t i = 0; i < in.size(); ++i) {
    ASSERT_NEAR(value[i], gelu(in[i]), (bound + stored) * std::max(1.0, std::abs(in[i]))) << in[i];
    ASSERT_NEAR(slope[i], gelu_slope(in[i]), 3 * bound + 1.2 * stored) << in[i];
  }
}

TEST_P(ActivationTest, EmptyNanAndThreads) {
  for (const ActivationKind kind : kKinds) {
    const int64_t halves = is_gated(kind) ? 2 : 1;
    Tensor none({0, halves, 16}, dtype(), device()), y_none({0, 16}, dtype(), device());
    activation_forward(kind, none, y_none);
    activation_backward(kind, y_none, none, none);

    const Tensor nan = filled({2, halves, 19}, dtype(), std::nan(""));
    Tensor y({2, 19}, dtype(), device());
    activation_forward(kind, nan, y);
    for (double v : to_doubles(y)) EXPECT_TRUE(std::isnan(v)) << static_cast<int>(kind);

    const Tensor u = random_tensor({301, halves, 217}, dtype(), 1);
    const Tensor dy = random_tensor({301, 217}, dtype(), 2);
    expect_same_for_any_threads([&] {
      std::vector<Tensor> r;
      r.emplace_back(Shape{301, 217}, dtype(), device());
      r.emplace_back(Shape{301, halves, 217}, dtype(), device());
      activation_forward(kind, u, r[0]);
      activation_backward(kind, dy, u, r[1]);
      return r;
    });
  }
}

AMUR_ALL_KERNEL_CASES(ActivationTest);

TEST(ActivationDerivative, CentralDifferences) {
  const int64_t rows = 3, width = 7;
  for (const ActivationKind kind : kKinds) {
    const int64_t halves = is_gated(kind) ? 2 : 1;
    Doubles u = random_doubles(rows * halves * width, 1);
    for (double& v : u) v += v > 0 ? 0.1 : -0.1;  // away from the kink of ReLU
    const Doubles weights = random_doubles(rows * width, 2),
                  along = random_doubles(static_cast<int64_t>(u.size()), 3);
    Tensor y({rows, width}, DType::f64), du({rows, halves, width}, DType::f64);
    const auto loss = [&](const Doubles& at) {
      activation_forward(kind, from_doubles(at, {rows, halves, width}, DType::f64), y);
      return dot(weights, to_doubles(y));
    };
    activation_backward(kind, from_doubles(weights, {rows, width}, DType::f64),
                        from_doubles(u, {rows, halves, width}, DType::f64), du);
    EXPECT_NEAR(dot(to_doubles(du), along), slope_along(loss, u, along), 1e-8)
        << static_cast<int>(kind);
  }
}

}  // namespace
}  // namespace amur::test
