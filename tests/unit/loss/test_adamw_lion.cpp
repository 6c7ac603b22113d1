// AdamW and Lion against their textbook forms, and Lion against Tiger.
#include <gtest/gtest.h>

#include <limits>

#include "tests/unit/loss/optimizer_fixture.h"

namespace amur {
namespace {

using Vector = std::vector<double>;

double sign(double x) {
  return x > 0 ? 1 : x < 0 ? -1 : 0;
}

OptimizerConfig config_of(OptimizerKind kind) {
  OptimizerConfig c;
  c.kind = kind;
  c.learning_rate = 1e-2;
  c.embedding_learning_rate = 3e-2;
  if (kind == OptimizerKind::lion) {
    c.beta1 = 0.95;
    c.beta2 = 0.98;
  }
  return c;
}

// One step at half the learning rate with each rank's part of the gradient of four samples.
void step_on(Optimizer& optimizer, ParameterSet& set, int64_t step, double rate, Communicator& dp) {
  optimizer.begin_step(step, 0.25, {}, dp);
  for (size_t p = 0; p < set.size(); ++p)
    for (int64_t n = dp.rank(); n < 4; n += dp.size())
      for (int64_t i = 0; i < set[p].value.elements(); ++i)
        add_to_sink(set[p], i, gradient(p, i, step, n));
  optimizer.finish_step(step, rate, dp);
}
double mean_gradient(size_t p, size_t i, int64_t step) {
  double g = 0;
  for (int64_t n = 0; n < 4; ++n) g += 0.25 * gradient(p, static_cast<int64_t>(i), step, n);
  return g;
}

// Kinds in the order of model(): embedding, weight, bias, gain, scalar.
constexpr bool kDecays[] = {true, true, false, false, false};

TEST(AdamW, EqualsTheTextbook) {
  Communicator& dp = dp_group();
  ParameterSet set = model();
  const OptimizerConfig c = config_of(OptimizerKind::adamw);
  auto adamw = Optimizer::make(c, set, 4e-3);
  std::vector<Vector> x, m, v;
  for (const Parameter& p : set) {
    x.push_back(values(p.value));
    m.emplace_back(x.back().size());
    v.emplace_back(x.back().size());
  }
  double squares = 0;
  for (int64_t step = 0; step < 12; ++step) {
    step_on(*adamw, set, step, 0.5e-2, dp);
    squares = 0;
    for (size_t p = 0; p < x.size(); ++p) {
      const double rate = p == 0 ? 1.5e-2 : p == 4 ? 2e-3 : 0.5e-2;
      for (size_t i = 0; i < x[p].size(); ++i) {
        const double g = mean_gradient(p, i, step), t = static_cast<double>(step + 1);
        squares += g * g;
        m[p][i] = c.beta1 * m[p][i] + (1 - c.beta1) * g;
        v[p][i] = c.beta2 * v[p][i] + (1 - c.beta2) * g * g;
        const double mean = m[p][i] / (1 - std::pow(c.beta1, t));
        const double square = v[p][i] / (1 - std::pow(c.beta2, t));
        x[p][i] -= rate * (kDecays[p] ? c.weight_decay : 0) * x[p][i] +
                   rate * mean / (std::sqrt(square) + c.epsilon);
      }
    }
  }
  for (size_t p = 0; p < x.size(); ++p) {
    const Vector mine = values(set[p].value);
    for (size_t i = 0; i < mine.size(); ++i) EXPECT_NEAR(mine[i], x[p][i], 1e-13) << set[p].name;
    EXPECT_TRUE(same_on_all_ranks(set[p].value, dp));
  }
  EXPECT_NEAR(adamw->last_gradient_norm(), std::sqrt(squares), 1e-12);
  const auto slots = adamw->slots();
  ASSERT_EQ(slots.size(), 10u);
  EXPECT_EQ(slots[0].slot, "first_moment");
  EXPECT_NEAR(slots[3].value.as<double>()[2], v[1][2], 1e-15);
  EXPECT_EQ(adamw->state_bytes(), 3 * sizeof(double) * (60 + 42 + 7 + 7 + 1));
}

TEST(Lion, EqualsTheTextbook) {
  Communicator& dp = dp_group();
  ParameterSet set = model();
  const OptimizerConfig c = config_of(OptimizerKind::lion);
  auto lion = Optimizer::make(c, set, 4e-3);
  std::vector<Vector> x, m;
  for (const Parameter& p : set) {
    x.push_back(values(p.value));
    m.emplace_back(x.back().size());
  }
  for (int64_t step = 0; step < 12; ++step) {
    step_on(*lion, set, step, 0.5e-2, dp);
    for (size_t p = 0; p < 4; ++p) {
      const double rate = p == 0 ? 1.5e-2 : 0.5e-2;
      for (size_t i = 0; i < x[p].size(); ++i) {
        const double g = mean_gradient(p, i, step);
        const double u = sign(c.beta1 * m[p][i] + (1 - c.beta1) * g);
        x[p][i] -= rate * (u + (kDecays[p] ? c.weight_decay : 0) * x[p][i]);
        m[p][i] = c.beta2 * m[p][i] + (1 - c.beta2) * g;
      }
    }
  }
  for (size_t p = 0; p < 4; ++p) {
    const Vector mine = values(set[p].value);
    for (size_t i = 0; i < mine.size(); ++i) EXPECT_NEAR(mine[i], x[p][i], 1e-14) << set[p].name;
    EXPECT_TRUE(same_on_all_ranks(set[p].value, dp));
  }
  EXPECT_NEAR(lion->slots()[1].value.as<double>()[2], m[1][2], 1e-15);
}

// With one beta and a constant rate Lion's step is Tiger's: biases have no relative rate.
TEST(Lion, WithOneBetaIsTiger) {
  Communicator& dp = dp_group();
  const auto biases = [] {
    ParameterSet set;
    set.add(parameter("b", ParamKind::bias, {40}, DType::f64, 0.1));
    set.add(parameter("scale", ParamKind::scalar, {1}, DType::f64, 1));
    return set;
  };
  ParameterSet a = biases(), b = biases();
  OptimizerConfig lion = config_of(OptimizerKind::lion), tiger = config_of(OptimizerKind::tiger);
  lion.beta1 = lion.beta2 = tiger.beta = 0.9;
  auto x = Optimizer::make(lion, a), y = Optimizer::make(tiger, b);
  for (int64_t step = 0; step < 20; ++step) {
    step_on(*x, a, step, 1e-2, dp);
    step_on(*y, b, step, 2e-2, dp);  // Tiger halves the rate of biases
  }
  const Vector p = values(a[0].value), q = values(b[0].value);
  for (size_t i = 0; i < p.size(); ++i) EXPECT_NEAR(p[i], q[i], 1e-15);
}

TEST(BufferedOptimizer, NonFiniteIsAgreedAndNamed) {
  Communicator& dp = dp_group();
  for (OptimizerKind kind : {OptimizerKind::adamw, OptimizerKind::lion}) {
    ParameterSet set = model();
    const Vector before = values(set[3].value);
    auto optimizer = Optimizer::make(config_of(kind), set);
    optimizer->begin_step(0, 1, {}, dp);
    if (dp.rank() == dp.size() - 1) add_to_sink(set[3], 2, std::numeric_limits<double>::infinity());
    try {
      optimizer->finish_step(0, 1e-3, dp);
      FAIL() << "no error";
    } catch (const NumericError& e) {
      EXPECT_NE(std::string(e.what()).find("gradient of gain is"), std::string::npos) << e.what();
    }
    EXPECT_EQ(values(set[3].value), before);
  }
}

}  // namespace
}  // namespace amur
