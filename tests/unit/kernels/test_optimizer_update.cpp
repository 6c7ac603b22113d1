#include "kernels/optimizer_update.h"

#include <array>

#include "tests/unit/kernels/kernel_test.h"

namespace amur::test {
namespace {

constexpr int64_t kSizes[] = {0, 1, 7, 256, 1000, 70001};

// Parameters are f32 or f64.
class OptimizerUpdateTest : public KernelTest {
 protected:
  // update(device) leaves in its tensors what it leaves on the CPU, to the bit: the rules of
  // kernels/optimizer_rules.h are the same source on both.
  void expect_bits_of_cpu(const std::function<std::vector<Tensor>(Device)>& update) const {
    const std::vector<Tensor> here = update(device()), reference = update(Device::cpu());
    for (size_t i = 0; i < here.size(); ++i)
      EXPECT_TRUE(same_bits(here[i], reference[i])) << "tensor " << i;
  }
  Tensor random_on(Device where, int64_t n, uint64_t seed) const {
    return test::random_tensor({n}, dtype(), seed, 1, where);
  }
};

void update(const ParameterUpdate& one) {
  update_parameters({&one, 1});
}

double sign(double x) {
  return (x > 0) - (x < 0);
}

TEST_P(OptimizerUpdateTest, Sign) {
  for (const int64_t n : kSizes) {
    Tensor theta = random_tensor({n}, dtype(), 1);
    Doubles m = random_doubles(n, 2), expected = to_doubles(theta);
    for (size_t i = 0; i < m.size(); i += 5) m[i] = i % 2 ? 0 : std::nan("");
    for (size_t i = 0; i < m.size(); ++i) expected[i] -= 0.125 * (sign(m[i]) + 0.5 * expected[i]);
    Tensor there = from_doubles(m, {n}, dtype(), device());
    update({SignStep{0.125, 0.5}, theta, there});
    expect_near(theta, expected, 2 * rounding(dtype()), "sign");
  }
  expect_bits_of_cpu([&](Device where) {
    std::vector<Tensor> r;
    r.push_back(random_on(where, 5003, 1));
    r.push_back(random_on(where, 5003, 2));
    update({SignStep{0.0123, 0.037}, r[0], r[1]});
    return r;
  });
}

TEST_P(OptimizerUpdateTest, SignByRow) {
  for (const auto& [rows, width] : {std::pair<int64_t, int64_t>{0, 4},
                                    {1, 1},
                                    {3, 33},
                                    {5, 256},
                                    {4, 1000},
                                    {3, 1004},
                                    {9000, 3}}) {
    const Tensor m = random_tensor({rows, width}, dtype(), 2);
    Doubles start = random_doubles(rows * width, 1);
    for (int64_t j = 0; j < std::min<int64_t>(width, rows * width); ++j)
      start[static_cast<size_t>(j)] *= 1e-3;  // the first row is below the floor
    Tensor theta = from_doubles(start, {rows, width}, dtype(), device());
    Tensor some = from_doubles(start, {rows, width}, dtype(), device());
    const Doubles before = to_doubles(theta), direction = to_doubles(m);
    const auto moved = [&](int64_t r, double rate) {
      double squares = 0;
      for (int64_t j = 0; j < width; ++j) {
        const double x = before[static_cast<size_t>(r * width + j)];
        squares += x * x;
      }
      const double step = rate * std::max(std::sqrt(squares / static_cast<double>(width)), 0.1);
      Doubles row;
      for (int64_t j = 0; j < width; ++j) {
        const size_t at = static_cast<size_t>(r * width + j);
        row.push_back(before[at] - step * (sign(direction[at]) + 0.25 * before[at]));
      }
      return row;
    };
    const auto put = [&](Doubles& all, int64_t r, double rate) {
      const Doubles row = moved(r, rate);
      std::copy(row.begin(), row.end(), all.begin() + r * width);
    };
    Doubles expected = before, expected_some = before;
    for (int64_t r = 0; r < rows; ++r) put(expected, r, 0.01);
    sign_update_by_row(m, 0.01, 0.1, 0.25, theta);
    expect_near(theta, expected, 4 * rounding(dtype()), "by row");

    std::vector<int64_t> chosen;
    std::vector<double> rates;
    for (int64_t r = rows - 1; r >= 0; r -= 2) {
      chosen.push_back(r);
      rates.push_back(0.01 / static_cast<double>(r + 1));
      put(expected_some, r, rates.back());
    }
    sign_update_of_rows(m, chosen, rates, 0.1, 0.25, some);
    expect_near(some, expected_some, 4 * rounding(dtype()), "of rows");
    sign_update_of_rows(m, {}, {}, 0.1, 0.25, some);
    expect_near(some, expected_some, 4 * rounding(dtype()), "of no rows");
  }
  Tensor theta = filled({2, 2}, dtype(), 1);
  const std::array<int64_t, 1> outside = {2};
  const std::array<double, 1> rate = {1};
  EXPECT_THROW(sign_update_of_rows(filled({2, 2}, dtype(), 1), outside, rate, 0, 0, theta),
               InternalError);
}

TEST_P(OptimizerUpdateTest, Bounded) {
  for (const int64_t n : kSizes) {
    Tensor theta = random_tensor({n}, dtype(), 1);
    Tensor m = random_tensor({n}, dtype(), 2);
    Doubles expected = to_doubles(theta);
    const Doubles direction = to_doubles(m);
    for (size_t i = 0; i < expected.size(); ++i)
      expected[i] -= 0.1 * std::clamp(direction[i] / 0.5, -1.0, 1.0);
    update({BoundedStep{0.1, 0.5}, theta, m});
    expect_near(theta, expected, 2 * rounding(dtype()), "bounded");
  }
}

TEST_P(OptimizerUpdateTest, Lion) {
  const LionStep step{0.01, 0.3, 0.9, 0.98};
  for (const int64_t n : kSizes) {
    Tensor theta = random_tensor({n}, dtype(), 1), m = random_tensor({n}, dtype(), 2);
    const Tensor g = random_tensor({n}, dtype(), 3);
    Doubles t = to_doubles(theta), v = to_doubles(m);
    const Doubles d = to_doubles(g);
    for (size_t i = 0; i < t.size(); ++i) {
      t[i] -= 0.01 * (sign(0.9 * v[i] + 0.1 * d[i]) + 0.3 * t[i]);
      v[i] = 0.98 * v[i] + 0.02 * d[i];
    }
    update({step, theta, m, g});
    expect_near(theta, t, 2 * rounding(dtype()), "theta");
    expect_near(m, v, 3 * rounding(dtype()), "momentum");
  }
  expect_bits_of_cpu([&](Device where) {
    std::vector<Tensor> r;
    r.push_back(random_on(where, 5003, 1));
    r.push_back(random_on(where, 5003, 2));
    update({step, r[1], r[0], random_on(where, 5003, 3)});
    return r;
  });
}

TEST_P(OptimizerUpdateTest, AdamW) {
  const AdamWStep step{0.01, 0.3, 0.9, 0.99, 1e-8, 3};
  for (const int64_t n : kSizes) {
    Tensor theta = random_tensor({n}, dtype(), 1), m = random_tensor({n}, dtype(), 2);
    Doubles squares = random_doubles(n, 4);
    for (double& s : squares) s = s * s + 0.01;
    Tensor v = from_doubles(squares, {n}, dtype(), device());
    const Tensor g = random_tensor({n}, dtype(), 3);
    Doubles t = to_doubles(theta), first = to_doubles(m), second = to_doubles(v);
    const Doubles d = to_doubles(g);
    for (size_t i = 0; i < t.size(); ++i) {
      first[i] = 0.9 * first[i] + 0.1 * d[i];
      second[i] = 0.99 * second[i] + 0.01 * d[i] * d[i];
      const double corrected = first[i] / (1 - 0.9 * 0.9 * 0.9);
      const double scale = std::sqrt(second[i] / (1 - 0.99 * 0.99 * 0.99)) + 1e-8;
      t[i] -= 0.01 * (corrected / scale + 0.3 * t[i]);
    }
    update({step, theta, m, g, v});
    expect_near(m, first, 4 * rounding(dtype()), "first moment");
    expect_near(v, second, 4 * rounding(dtype()), "second moment");
    expect_near(theta, t, 4 * rounding(dtype()), "theta");
  }
  expect_bits_of_cpu([&](Device where) {
    std::vector<Tensor> r;
    r.push_back(random_on(where, 5003, 1));
    r.push_back(test::filled({5003}, dtype(), 0.3, where));
    r.push_back(random_on(where, 5003, 2));
    update({step, r[2], r[0], random_on(where, 5003, 3), r[1]});
    return r;
  });
}

// Not where a pack begins: the same bits.
TEST_P(OptimizerUpdateTest, AnyPlaceInMemory) {
  const Shape shape{5, 136};
  const auto tensor = [&](uint64_t seed) { return random_tensor(shape, dtype(), seed); };
  const Tensor g = tensor(3);
  for (int rule = 0; rule < 6; ++rule) {
    Tensor theta = tensor(1), m = tensor(2), v = filled(shape, dtype(), 0.3);
    const OddlyPlaced odd_theta(theta), odd_m(m), odd_v(v), odd_g(g);
    const auto step = [&](TensorView weights, TensorView mean, TensorView square,
                          ConstTensorView gradient) {
      ParameterUpdate u{SignStep{0.01, 0.1}, weights, mean, gradient, square};
      if (rule == 1) u.step = BoundedStep{0.01, 0.3};
      if (rule == 2) u.step = LionStep{0.01, 0.3, 0.9, 0.98};
      if (rule == 3) u.step = AdamWStep{0.01, 0.3, 0.9, 0.99, 1e-8, 2};
      if (rule < 4) return update(u);
      if (rule == 4) return sign_update_by_row(mean, 0.01, 0.1, 0.25, weights);
      sign_update_of_rows(mean, std::array<int64_t, 2>{4, 1}, std::array<double, 2>{0.01, 0.02},
                          0.1, 0.25, weights);
    };
    step(theta, m, v, g);
    step(odd_theta, odd_m, odd_v, odd_g);
    EXPECT_TRUE(same_bits(theta, odd_theta)) << "rule " << rule;
    EXPECT_TRUE(same_bits(m, odd_m)) << "rule " << rule;
    EXPECT_TRUE(same_bits(v, odd_v)) << "rule " << rule;
  }
}

// All at once is one after another: sizes around the pieces in which a GPU takes them, and none.
TEST_P(OptimizerUpdateTest, ManyAtOnce) {
  const int64_t sizes[] = {1, 16384, 0, 16385, 40000, 5, 0};
  const auto updates = [&](std::vector<Tensor>& all) {
    std::vector<ParameterUpdate> list;
    for (size_t i = 0; i < std::size(sizes); ++i) {
      ParameterUpdate u{SignStep{0.01, 0.1}, all[4 * i], all[4 * i + 1]};
      if (i % 4 == 1) u.step = BoundedStep{0.01, 0.3};
      if (i % 4 == 2) u.step = LionStep{0.01, 0.3, 0.9, 0.98};
      if (i % 4 == 3) u.step = AdamWStep{0.01, 0.3, 0.9, 0.99, 1e-8, 2};
      if (i % 4 >= 2) u.gradient = all[4 * i + 2];
      if (i % 4 == 3) u.second_moment = all[4 * i + 3];
      list.push_back(u);
    }
    return list;
  };
  const auto tensors = [&](Device where) {
    std::vector<Tensor> all;
    for (const int64_t n : sizes)
      for (uint64_t k = 0; k < 4; ++k)
        all.push_back(k == 3 ? test::filled({n}, dtype(), 0.3, where)
                             : random_on(where, n, all.size() + 1));
    return all;
  };
  std::vector<Tensor> together = tensors(device()), apart = tensors(Device::cpu());
  update_parameters(updates(together));
  for (const ParameterUpdate& u : updates(apart)) update(u);
  for (size_t i = 0; i < apart.size(); ++i)
    EXPECT_TRUE(same_bits(together[i], apart[i])) << "tensor " << i;
  update_parameters({});
}

AMUR_KERNEL_CASES(OptimizerUpdateTest, all_targets(), DType::f32, DType::f64);

}  // namespace
}  // namespace amur::test
