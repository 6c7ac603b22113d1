#include "kernels/elementwise.h"
#include "kernels/norm.h"
#include "tests/unit/kernels/kernel_test.h"

namespace amur::test {
namespace {

class NormTest : public KernelTest {};

struct NormOracle {
  Doubles y, mean, rstd, dx, d_gain, d_bias;
};

NormOracle oracle(NormKind kind, int64_t rows, int64_t width, const Doubles& x, const Doubles& gain,
                  const Doubles& bias, double eps, const Doubles& dy) {
  const size_t d = static_cast<size_t>(width), n = static_cast<size_t>(rows);
  NormOracle o{Doubles(n * d), Doubles(n), Doubles(n), Doubles(n * d), Doubles(d), Doubles(d)};
  for (size_t t = 0; t < n; ++t) {
    double mean = 0, square = 0;
    if (kind == NormKind::layer)
      for (size_t j = 0; j < d; ++j) mean += x[t * d + j] / static_cast<double>(d);
    for (size_t j = 0; j < d; ++j)
      square += (x[t * d + j] - mean) * (x[t * d + j] - mean) / static_cast<double>(d);
    const double rstd = 1 / std::sqrt(square + eps);
    o.mean[t] = mean;
    o.rstd[t] = rstd;
    double g_mean = 0, gn_mean = 0;
    for (size_t j = 0; j < d; ++j) {
      const double normal = (x[t * d + j] - mean) * rstd, g = dy[t * d + j] * gain[j];
      o.y[t * d + j] = normal * gain[j] + bias[j];
      o.d_gain[j] += dy[t * d + j] * normal;
      o.d_bias[j] += dy[t * d + j];
      g_mean += g / static_cast<double>(d);
      gn_mean += g * normal / static_cast<double>(d);
    }
    if (kind == NormKind::rms) g_mean = 0;
    for (size_t j = 0; j < d; ++j) {
      const double normal = (x[t * d + j] - mean) * rstd;
      o.dx[t * d + j] = rstd * (dy[t * d + j] * gain[j] - g_mean - normal * gn_mean);
    }
  }
  return o;
}

TEST_P(NormTest, MatchesTheDefinition) {
  for (const NormKind kind : {NormKind::layer, NormKind::rms}) {
    for (const auto& [rows, width] : {std::pair<int64_t, int64_t>{1, 1},
                                      {3, 5},
                                      {7, 32},
                                      {130, 65},
                                      {200, 256},
                                      {2, 1000},
                                      {3, 1024},
                                      {3, 1032},
                                      {1700, 16}}) {
      const Tensor x = random_tensor({rows, width}, dtype(), 1);
      const Tensor dy = random_tensor({rows, width}, dtype(), 2);
      const Tensor residual = random_tensor({rows, width}, dtype(), 3);
      const Tensor gain = random_tensor({width}, parameter(), 4);
      const Tensor bias = random_tensor({width}, parameter(), 5);
      const double eps = 1e-3;
      const NormOracle o = oracle(kind, rows, width, to_doubles(x), to_doubles(gain),
                                  to_doubles(bias), eps, to_doubles(dy));
      const std::string what = fmt::format("{} rows of {}", rows, width);
      const double tolerance = 16 * rounding(dtype());
      const double sum_tolerance =
          40 * rounding(parameter()) * std::sqrt(static_cast<double>(rows));

      Tensor y({rows, width}, dtype(), device()), mean({rows}, parameter(), device()),
          rstd({rows}, parameter(), device());
      norm_forward(kind, x, gain, bias, eps, y,
                   kind == NormKind::layer ? TensorView(mean) : TensorView(), rstd);
      expect_near(y, o.y, tolerance, what);
      expect_near(rstd, o.rstd, 50 * rounding(parameter()), what);
      if (kind == NormKind::layer) expect_near(mean, o.mean, 10 * rounding(parameter()), what);

      Tensor dx({rows, width}, dtype(), device());
      Tensor gain_sink = filled({width}, parameter(), 3),
             bias_sink = filled({width}, parameter(), 5);
      norm_backward(kind, dy, x, gain, mean, rstd, residual, dx, 0.5, gain_sink, bias_sink);
      Doubles dx_expected = to_doubles(residual), gain_expected = o.d_gain,
              bias_expected = o.d_bias;
      for (size_t i = 0; i < dx_expected.size(); ++i) dx_expected[i] += o.dx[i];
      for (double& v : gain_expected) v = 3 + 0.5 * v;
      for (double& v : bias_expected) v = 5 + 0.5 * v;
      // With a single element and LayerNorm, dx is 0 by cancellation of terms of size rstd.
      expect_near(dx, dx_expected, 30 * tolerance, what + " dx");
      expect_near(gain_sink, gain_expected, sum_tolerance, what + " gain");
      expect_near(bias_sink, bias_expected, sum_tolerance, what + " bias");
    }
  }
}

TEST_P(NormTest, OptionalTensorsAndAliases) {
  const int64_t rows = 9, width = 48;
  const Tensor x = random_tensor({rows, width}, dtype(), 1);
  const Tensor dy = random_tensor({rows, width}, dtype(), 2);
  const Tensor gain = random_tensor({width}, parameter(), 4);
  const Tensor zero = Tensor::zeros({width}, parameter(), device());
  Tensor mean({rows}, parameter(), device()), rstd({rows}, parameter(), device());
  Tensor with_zero({rows, width}, dtype(), device()), without({rows, width}, dtype(), device());
  norm_forward(NormKind::layer, x, gain, zero, 1e-5, with_zero, mean, rstd);
  norm_forward(NormKind::layer, x, gain, {}, 1e-5, without, mean, rstd);
  EXPECT_EQ(to_doubles(with_zero), to_doubles(without));
  Tensor in_place({rows, width}, dtype(), device());
  copy(in_place, x);
  norm_forward(NormKind::layer, in_place, gain, {}, 1e-5, in_place, mean, rstd);
  EXPECT_TRUE(same_bits(in_place, without));

  Tensor dx({rows, width}, dtype(), device()), dx_in_place({rows, width}, dtype(), device());
  Tensor gain_sink = Tensor::zeros({width}, parameter(), device()),
         gain_only = Tensor::zeros({width}, parameter(), device());
  Tensor bias_sink = Tensor::zeros({width}, parameter(), device()),
         bias_only = Tensor::zeros({width}, parameter(), device());
  norm_backward(NormKind::layer, dy, x, gain, mean, rstd, {}, dx, 1, gain_sink, bias_sink);
  copy(dx_in_place, dy);
  norm_backward(NormKind::layer, dx_in_place, x, gain, mean, rstd, {}, dx_in_place, 1, gain_only,
                {});
  EXPECT_TRUE(same_bits(dx, dx_in_place));
  EXPECT_TRUE(same_bits(gain_sink, gain_only));
  copy(dx_in_place, dy);
  norm_backward(NormKind::layer, dx_in_place, x, gain, mean, rstd, {}, dx_in_place, 1, {},
                bias_only);
  EXPECT_TRUE(same_bits(bias_sink, bias_only));

  Tensor sum({rows, width}, dtype(), device()), sum_in_place({rows, width}, dtype(), device());
  norm_backward(NormKind::layer, dy, x, gain, mean, rstd, x, sum, 1, {}, {});
  copy(sum_in_place, x);
  norm_backward(NormKind::layer, dy, x, gain, mean, rstd, sum_in_place, sum_in_place, 1, {}, {});
  EXPECT_TRUE(same_bits(sum, sum_in_place));
}

TEST_P(NormTest, AnOffsetDoesNotCancel) {
  const int64_t width = 256;
  Doubles shifted(static_cast<size_t>(width));
  for (size_t j = 0; j < shifted.size(); ++j) shifted[j] = 1024 + (j % 2 == 0 ? 8 : -8);
  const Tensor x = from_doubles(shifted, {1, width}, dtype(), device());
  const Tensor gain = filled({width}, parameter(), 1);
  Tensor y({1, width}, dtype(), device()), mean({1}, parameter(), device()),
      rstd({1}, parameter(), device());
  norm_forward(NormKind::layer, x, gain, {}, 0, y, mean, rstd);
  Doubles expected(shifted.size());
  for (size_t j = 0; j < expected.size(); ++j) expected[j] = j % 2 == 0 ? 1 : -1;
  expect_near(y, expected, 4 * rounding(dtype()), "y");
}

// The sum and its norm at once: the bits of one after the other, also where the norm takes the
// residual's place, for rows that a warp holds and others, and statistics of some coordinates.
TEST_P(NormTest, OfASum) {
  const Sequences sequences({3, 1, 40, 2, 24}, 1000, device());
  const int64_t rows = sequences.tokens();
  for (const int64_t width : {1, 33, 64, 1000, 1040}) {
    const Tensor x = random_tensor({rows, width}, dtype(), 1);
    const Tensor residual = random_tensor({rows, width}, dtype(), 2);
    const Tensor gain = random_tensor({width}, parameter(), 4);
    const Tensor bias = random_tensor({width}, parameter(), 5);
    for (const double probability : {0.0, 0.3}) {
      for (const NormKind kind : {NormKind::layer, NormKind::rms}) {
        const DropoutSite site{probability, 3, 2};
        const int64_t statistics = kind == NormKind::rms ? width : (width + 1) / 2;
        const auto empty_like = [&] { return empty({rows, width}, dtype()); };
        Tensor y = empty_like(), n = empty_like(), sum = empty_like(), place = empty_like();
        Tensor mean = empty({rows}, parameter()), rstd = empty({rows}, parameter());
        dropout_add_forward(sequences.packed, site, x, residual, y);
        norm_forward(kind, y, gain, bias, 1e-3, n, mean, rstd, statistics);
        copy(sum, x);
        copy(place, residual);
        Tensor mean_at_once = empty({rows}, parameter()), rstd_at_once = empty({rows}, parameter());
        Tensor apart = empty_like();
        const TensorView at = kind == NormKind::layer ? apart : sum;  // or in the place of x
        add_norm_forward(sequences.packed, site, sum, place, at, kind, gain, bias, 1e-3, place,
                         mean_at_once, rstd_at_once, statistics);
        const std::string what = fmt::format("width {}, dropout {}", width, probability);
        EXPECT_TRUE(same_bits(at, y)) << what;
        EXPECT_TRUE(same_bits(place, n)) << what;
        EXPECT_TRUE(same_bits(rstd_at_once, rstd)) << what;
        if (kind == NormKind::layer) {
          EXPECT_TRUE(same_bits(mean_at_once, mean)) << what;
          // What the other coordinates hold does not reach the statistics.
          const Doubles in = to_doubles(y), of = to_doubles(mean);
          for (size_t t = 0; t < of.size(); ++t) {
            double expected = 0;
            for (size_t j = 0; j < static_cast<size_t>(statistics); ++j)
              expected += in[t * static_cast<size_t>(width) + j] / static_cast<double>(statistics);
            ASSERT_NEAR(of[t], expected, 20 * rounding(parameter())) << what;
          }
        }
      }
    }
  }
}

// Rows that do not begin at a multiple of 16 bytes.
TEST_P(NormTest, MisalignedTensors) {
  const int64_t rows = 5, width = 64;
  const Tensor x = random_tensor({rows * width + 1}, dtype(), 1);
  const Tensor dy = random_tensor({rows * width + 1}, dtype(), 2);
  const Tensor gain = random_tensor({width}, parameter(), 4);
  const Shape shape = {rows, width};
  Tensor y = empty(shape, dtype()), dx = empty(shape, dtype());
  Tensor mean = empty({rows}, parameter()), rstd = empty({rows}, parameter());
  Tensor sink = zeros({width}, parameter());
  const auto run = [&](ConstTensorView at_x, ConstTensorView at_dy) {
    fill_zero(sink);
    norm_forward(NormKind::layer, at_x, gain, {}, 1e-3, y, mean, rstd);
    norm_backward(NormKind::layer, at_dy, at_x, gain, mean, rstd, {}, dx, 1, sink, {});
  };
  const ConstTensorView odd_x = x.view().slice(1, rows * width).reshape(shape);
  const ConstTensorView odd_dy = dy.view().slice(1, rows * width).reshape(shape);
  run(odd_x, odd_dy);
  const Doubles y_odd = to_doubles(y), dx_odd = to_doubles(dx), sink_odd = to_doubles(sink);
  run(copy_on(device(), odd_x), copy_on(device(), odd_dy));
  expect_near(y, y_odd, 4 * rounding(dtype()), "y");
  expect_near(dx, dx_odd, 20 * rounding(dtype()), "dx");
  expect_near(sink, sink_odd, 20 * rounding(parameter()), "sink");
}

TEST_P(NormTest, EmptyAndThreads) {
  const int64_t width = 100;
  const Tensor gain = random_tensor({width}, parameter(), 4);
  Tensor none({0, width}, dtype(), device()), statistics({0}, parameter(), device());
  Tensor sink = filled({width}, parameter(), 2);
  norm_forward(NormKind::layer, none, gain, {}, 1e-5, none, statistics, statistics);
  norm_backward(NormKind::layer, none, none, gain, statistics, statistics, {}, none, 1, sink, sink);
  EXPECT_EQ(to_doubles(sink), Doubles(100, 2.0));

  const int64_t rows = 1111;
  const Tensor x = random_tensor({rows, width}, dtype(), 1);
  const Tensor dy = random_tensor({rows, width}, dtype(), 2);
  expect_same_for_any_threads([&] {
    std::vector<Tensor> r;
    Tensor y({rows, width}, dtype(), device()), mean({rows}, parameter(), device()),
        rstd({rows}, parameter(), device());
    Tensor dx({rows, width}, dtype(), device()),
        gain_sink = Tensor::zeros({width}, parameter(), device()),
        bias_sink = Tensor::zeros({width}, parameter(), device());
    norm_forward(NormKind::layer, x, gain, {}, 1e-5, y, mean, rstd);
    norm_backward(NormKind::layer, dy, x, gain, mean, rstd, {}, dx, 1, gain_sink, bias_sink);
    r.push_back(std::move(y));
    r.push_back(std::move(dx));
    r.push_back(std::move(gain_sink));
    r.push_back(std::move(bias_sink));
    return r;
  });
}

AMUR_ALL_KERNEL_CASES(NormTest);

TEST(NormDerivative, CentralDifferences) {
  const int64_t rows = 3, width = 11;
  const Doubles x = random_doubles(rows * width, 1), gain = random_doubles(width, 2);
  const Doubles weights = random_doubles(rows * width, 3);
  for (const auto& [kind, statistics] : {std::pair(NormKind::layer, kWholeRow),
                                         {NormKind::rms, kWholeRow},
                                         {NormKind::layer, int64_t{5}},
                                         {NormKind::rms, int64_t{9}}}) {
    Tensor y({rows, width}, DType::f64), mean({rows}, DType::f64), rstd({rows}, DType::f64);
    const auto loss = [&](const Doubles& at_x, const Doubles& at_gain, const Doubles& at_bias) {
      norm_forward(kind, from_doubles(at_x, {rows, width}, DType::f64),
                   from_doubles(at_gain, {width}, DType::f64),
                   from_doubles(at_bias, {width}, DType::f64), 1e-2, y,
                   kind == NormKind::layer ? TensorView(mean) : TensorView(), rstd, statistics);
      return dot(weights, to_doubles(y));
    };
    const Doubles bias = random_doubles(width, 4);
    loss(x, gain, bias);
    Tensor dx({rows, width}, DType::f64), gain_sink = Tensor::zeros({width}, DType::f64),
                                          bias_sink = Tensor::zeros({width}, DType::f64);
    norm_backward(kind, from_doubles(weights, {rows, width}, DType::f64),
                  from_doubles(x, {rows, width}, DType::f64),
                  from_doubles(gain, {width}, DType::f64), mean, rstd, {}, dx, 1, gain_sink,
                  bias_sink, statistics);
    const Doubles along_x = random_doubles(rows * width, 5), along = random_doubles(width, 6);
    EXPECT_NEAR(dot(to_doubles(dx), along_x),
                slope_along([&](const Doubles& v) { return loss(v, gain, bias); }, x, along_x),
                1e-8);
    EXPECT_NEAR(dot(to_doubles(gain_sink), along),
                slope_along([&](const Doubles& v) { return loss(x, v, bias); }, gain, along), 1e-8);
    EXPECT_NEAR(dot(to_doubles(bias_sink), along),
                slope_along([&](const Doubles& v) { return loss(x, gain, v); }, bias, along), 1e-8);
  }
}

TEST(NormStatistics, OfTheFirstCoordinatesAlone) {
  // Of 3 coordinates of 8: what the other 5 hold does not reach the first 3.
  const Doubles gain = random_doubles(8, 2);
  Doubles x = random_doubles(8, 1);
  Tensor mean({1}, DType::f64), rstd({1}, DType::f64), y({1, 8}, DType::f64);
  const auto forward = [&](int64_t width, int64_t statistics) {
    y = Tensor({1, width}, DType::f64);
    norm_forward(NormKind::layer,
                 from_doubles(Doubles(x.begin(), x.begin() + width), {1, width}, DType::f64),
                 from_doubles(Doubles(gain.begin(), gain.begin() + width), {width}, DType::f64), {},
                 1e-2, y, mean, rstd, statistics);
    return to_doubles(y);
  };
  const Doubles narrow = forward(3, kWholeRow);
  const Doubles wide = forward(8, 3);
  const double old_mean = mean.as<double>()[0], old_rstd = rstd.as<double>()[0];
  for (size_t i = 0; i < 3; ++i) EXPECT_NEAR(wide[i], narrow[i], 1e-15);
  for (size_t i = 3; i < 8; ++i)
    EXPECT_NEAR(wide[i], (x[i] - old_mean) * old_rstd * gain[i], 1e-15);
  EXPECT_GT(std::abs(forward(8, kWholeRow)[0] - narrow[0]), 1e-3);
  EXPECT_THROW(forward(8, 9), InternalError);
}

TEST(NormErrors, ShapesAreChecked) {
  const Tensor x({4, 8}, DType::f32), gain({7}, DType::f32);
  Tensor y({4, 8}, DType::f32), rstd({4}, DType::f32);
  EXPECT_THROW(norm_forward(NormKind::rms, x, gain, {}, 1e-5, y, {}, rstd), InternalError);
}

}  // namespace
}  // namespace amur::test
