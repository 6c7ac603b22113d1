// Tiger against literal transcriptions of its rules, on all ranks of this run.
#include <gtest/gtest.h>

#include <algorithm>
#include <limits>

#include "tests/unit/loss/optimizer_fixture.h"

namespace amur {
namespace {

using Vector = std::vector<double>;

double sign(double x) {
  return x > 0 ? 1 : x < 0 ? -1 : 0;
}
double rms(const double* x, size_t n) {
  double s = 0;
  for (size_t i = 0; i < n; ++i) s += x[i] * x[i];
  return std::sqrt(s / static_cast<double>(n));
}

// The published optimizer with k micro-steps, one process, plain loops; biases and gains at half
// rate without decay, embeddings with one RMS a row.
struct Reference {
  double beta, decay;
  std::vector<Vector> theta, m;

  explicit Reference(const OptimizerConfig& config, const ParameterSet& set)
      : beta(config.beta), decay(config.weight_decay) {
    for (const Parameter& p : set) {
      theta.push_back(values(p.value));
      m.emplace_back(theta.back().size(), 0.0);
    }
  }
  // Micro-step t (from 0) of windows of k.
  void micro_step(const std::vector<Vector>& g, int64_t t, int64_t k, double alpha) {
    const double b1 = t % k == 0 ? beta : 1, b2 = (1 - beta) / static_cast<double>(k);
    const bool last = (t + 1) % k == 0;
    for (size_t p = 0; p < 4; ++p) {  // the scalar has a rule of its own
      Vector& x = theta[p];
      for (size_t i = 0; i < x.size(); ++i) m[p][i] = b1 * m[p][i] + b2 * g[p][i];
      if (!last) continue;
      const double whole = rms(x.data(), x.size());
      const size_t width = p == 0 ? kColumns : x.size();
      for (size_t first = 0; first < x.size(); first += width) {
        const double row = rms(x.data() + first, width);
        for (size_t i = first; i < first + width; ++i) {
          if (p == 0) x[i] -= alpha * row * (sign(m[p][i]) + decay * x[i]);
          if (p == 1) x[i] -= alpha * whole * (sign(m[p][i]) + decay * x[i]);
          if (p >= 2) x[i] -= 0.5 * alpha * sign(m[p][i]);
        }
      }
    }
  }
};

OptimizerConfig dense() {
  OptimizerConfig c;
  c.embedding_rows = EmbeddingRows::dense;
  return c;
}

// Samples are dealt to the ranks in turn; each adds its gradient over all samples.
void accumulate(ParameterSet& set, int64_t step, int64_t first_sample, int64_t samples,
                double share, Communicator& dp) {
  for (int64_t n = first_sample; n < first_sample + samples; ++n) {
    if (n % dp.size() != dp.rank()) continue;
    for (size_t p = 0; p < 4; ++p)
      for (int64_t i = 0; i < set[p].value.elements(); ++i)
        add_to_sink(set[p], i, share * gradient(p, i, step, n));
  }
}

Vector total_gradient(size_t p, size_t n, int64_t step, int64_t first_sample, int64_t samples,
                      double share) {
  Vector g(n);
  for (int64_t s = first_sample; s < first_sample + samples; ++s)
    for (size_t i = 0; i < n; ++i) g[i] += share * gradient(p, static_cast<int64_t>(i), step, s);
  return g;
}

double largest_difference(const Vector& a, const Vector& b) {
  double d = 0;
  for (size_t i = 0; i < a.size(); ++i) d = std::max(d, std::fabs(a[i] - b[i]));
  return d;
}

TEST(Tiger, TenDenseStepsEqualTheReference) {
  Communicator& dp = dp_group();
  ParameterSet set = model();
  const OptimizerConfig config = dense();
  Reference reference(config, set);
  auto tiger = Optimizer::make(config, set);
  for (int64_t step = 0; step < 10; ++step) {
    const double alpha = 1e-3 * static_cast<double>(step + 1);
    tiger->begin_step(step, 1, {}, dp);
    accumulate(set, step, 0, 5, 0.2, dp);
    tiger->finish_step(step, alpha, dp);
    std::vector<Vector> g;
    for (size_t p = 0; p < 4; ++p)
      g.push_back(total_gradient(p, reference.theta[p].size(), step, 0, 5, 0.2));
    reference.micro_step(g, step, 1, alpha);
  }
  const auto slots = tiger->slots();
  for (size_t p = 0; p < 4; ++p) {
    EXPECT_LE(largest_difference(values(set[p].value), reference.theta[p]), 1e-15) << set[p].name;
    const double* m = slots[p].value.as<double>();
    for (size_t i = 0; i < reference.m[p].size(); ++i)
      EXPECT_NEAR(m[i], reference.m[p][i], 1e-15) << set[p].name;
  }
}

// k = 8 hidden micro-steps are one step on the concatenated batch, and the published k = 8 rule.
TEST(Tiger, HiddenAccumulationIsOneBigBatch) {
  Communicator& dp = dp_group();
  ParameterSet small = model(), big = model();
  Reference reference(dense(), small);
  auto micro = Optimizer::make(dense(), small), whole = Optimizer::make(dense(), big);
  for (int64_t step = 0; step < 4; ++step) {
    micro->begin_step(step, 1.0 / 8, {}, dp);
    for (int64_t k = 0; k < 8; ++k) {
      accumulate(small, step, 4 * k, 4, 0.25, dp);
      std::vector<Vector> g;
      for (size_t p = 0; p < 4; ++p)
        g.push_back(total_gradient(p, reference.theta[p].size(), step, 4 * k, 4, 0.25));
      reference.micro_step(g, 8 * step + k, 8, 2e-3);
    }
    micro->finish_step(step, 2e-3, dp);
    whole->begin_step(step, 1, {}, dp);
    accumulate(big, step, 0, 32, 1.0 / 32, dp);
    whole->finish_step(step, 2e-3, dp);
  }
  auto a = micro->slots(), b = whole->slots();
  for (size_t p = 0; p < 4; ++p) {
    EXPECT_LE(largest_difference(values(small[p].value), values(big[p].value)), 1e-15);
    EXPECT_LE(largest_difference(values(small[p].value), reference.theta[p]), 1e-15);
    for (int64_t i = 0; i < a[p].value.elements(); ++i)
      EXPECT_NEAR(a[p].value.as<double>()[i], b[p].value.as<double>()[i], 1e-15);
  }
}

// Step t touches row r when r + 1 divides t + 1 (row 0 always), or never for the last row; each
// rank sees its own part of the rows.
bool touches(int64_t step, int64_t row) {
  return row + 1 < kRows && (step + 1) % (row + 1) == 0;
}

std::vector<uint8_t> rows_of_rank(int64_t step, Communicator& dp) {
  std::vector<uint8_t> bits(kRows);
  for (int64_t r = 0; r < kRows; ++r)
    bits[static_cast<size_t>(r)] = touches(step, r) && (r + step) % dp.size() == dp.rank();
  return bits;
}

void lazy_step(Optimizer& tiger, ParameterSet& set, int64_t step, double alpha, Communicator& dp) {
  std::vector<uint8_t> bits = rows_of_rank(step, dp);
  const std::vector<uint8_t> mine = bits;
  TensorView bitmap(bits.data(), {kRows}, DType::u8);
  tiger.begin_step(step, 1, {&bitmap, 1}, dp);
  for (int64_t r = 0; r < kRows; ++r) {
    EXPECT_EQ(bits[static_cast<size_t>(r)] != 0, touches(step, r));  // agreed
    if (!mine[static_cast<size_t>(r)]) continue;
    for (int64_t i = r * kColumns; i < (r + 1) * kColumns; ++i)
      add_to_sink(set[0], i, gradient(0, i, step, 0));
  }
  tiger.finish_step(step, alpha, dp);
}

TEST(Tiger, LazyRowsEqualTheirFormula) {
  Communicator& dp = dp_group();
  for (const double tail : {0.0, 3.0}) {
    ParameterSet set = model();
    OptimizerConfig config;
    config.embedding_rate = 7;
    config.embedding_tail = tail;
    const double limit = tail > 0 ? tail : 1 / (1 - config.beta);
    auto tiger = Optimizer::make(config, set);
    Vector theta = values(set[0].value), m(theta.size());
    std::vector<int64_t> last(kRows, -1);
    for (int64_t step = 0; step < 40; ++step) {
      lazy_step(*tiger, set, step, 1e-3, dp);
      for (int64_t r = 0; r < kRows; ++r) {
        if (!touches(step, r)) continue;
        const double n = static_cast<double>(step - last[static_cast<size_t>(r)]);
        last[static_cast<size_t>(r)] = step;
        double* x = theta.data() + r * kColumns;
        const double eta = 1e-3 * 7 * std::min(n, limit) * rms(x, kColumns);
        for (int64_t d = 0; d < kColumns; ++d) {
          double& momentum = m[static_cast<size_t>(r * kColumns + d)];
          momentum = std::pow(config.beta, n) * momentum +
                     (1 - config.beta) * gradient(0, r * kColumns + d, step, 0);
          x[d] -= eta * (sign(momentum) + config.weight_decay * x[d]);
        }
      }
    }
    EXPECT_LE(largest_difference(values(set[0].value), theta), 1e-14);
    const auto slots = tiger->slots();
    EXPECT_EQ(slots[1].slot, "last_step");
    EXPECT_TRUE(slots[1].per_row);
    for (int64_t r = 0; r < kRows; ++r)
      EXPECT_EQ(slots[1].value.as<int64_t>()[r], last[static_cast<size_t>(r)]);
    for (size_t i = 0; i < m.size(); ++i) EXPECT_NEAR(slots[0].value.as<double>()[i], m[i], 1e-15);
    for (const auto& slot : slots) EXPECT_TRUE(same_on_all_ranks(slot.value, dp)) << slot.slot;
    for (const Parameter& p : set) EXPECT_TRUE(same_on_all_ranks(p.value, dp)) << p.name;
  }
}

// One row of one number is pushed once and never again.
double after_one_push(EmbeddingRows rows, int64_t steps, double* before_the_rest) {
  Communicator& dp = dp_group();
  ParameterSet set;
  set.add(parameter("tokens", ParamKind::embedding, {1, 1}, DType::f64, 1));
  set[0].value.as<double>()[0] = 0.5;
  OptimizerConfig config;
  config.embedding_rows = rows;
  config.embedding_rate = 1;
  config.beta = 0.9999;  // so that the momentum outlasts the drift
  auto tiger = Optimizer::make(config, set);
  for (int64_t step = 0; step < steps; ++step) {
    uint8_t bit = step == 0;
    TensorView bitmap(&bit, {1}, DType::u8);
    tiger->begin_step(step, 1, {&bitmap, 1}, dp);
    if (step == 0 && dp.rank() == 0) add_to_sink(set[0], 0, -1);
    tiger->finish_step(step, 0.05, dp);
    if (step == 0) *before_the_rest = set[0].value.as<double>()[0];
  }
  return set[0].value.as<double>()[0];
}

TEST(Tiger, TokensNeverSeenAgain) {
  double pushed = 0;
  EXPECT_EQ(after_one_push(EmbeddingRows::lazy, 50, &pushed), pushed);
  EXPECT_GT(pushed, 0.5);
  EXPECT_NEAR(after_one_push(EmbeddingRows::dense, 3000, &pushed), 1 / 0.01, 1e-6);
}

TEST(Tiger, RmsFloorMovesZeroTensorsAndFrozenOnesStay) {
  Communicator& dp = dp_group();
  ParameterSet set;
  for (const char* name : {"stuck", "floored", "frozen"}) {
    set.add(parameter(name, ParamKind::weight, {2, 2}, DType::f32, 0));
    fill_zero(set.find(name)->value);
  }
  set[1].rms_floor = 0.1;
  set[1].learning_rate_multiplier = 2;
  set[2].frozen = true;
  auto tiger = Optimizer::make(OptimizerConfig(), set);
  EXPECT_EQ(tiger->state_bytes(), 2 * 4 * sizeof(float));
  tiger->begin_step(0, 1, {}, dp);
  EXPECT_FALSE(set[2].sink.defined());
  if (dp.rank() == 0)
    for (int i : {0, 1}) add_to_sink(set[static_cast<size_t>(i)], 3, 5);
  tiger->finish_step(0, 1e-2, dp);
  EXPECT_EQ(values(set[0].value), Vector(4));
  EXPECT_FLOAT_EQ(set[1].value.as<float>()[3], -2e-3f);
  EXPECT_EQ(values(set[2].value), Vector(4));
}

// Full steps far away, none once the gradient is gone.
TEST(Tiger, ScalarsComeToRest) {
  Communicator& dp = dp_group();
  ParameterSet set;
  set.add(parameter("scale", ParamKind::scalar, {1}, DType::f64, 1));
  double& t = set[0].value.as<double>()[0];
  t = 3;
  OptimizerConfig config;
  auto tiger = Optimizer::make(config, set, 0.01);
  double before = 0;
  for (int64_t step = 0; step < 1500; ++step) {
    before = t;
    tiger->begin_step(step, 1, {}, dp);
    if (dp.rank() == 0) add_to_sink(set[0], 0, t - 2);  // of (t - 2)^2 / 2
    tiger->finish_step(step, config.learning_rate * 0.5, dp);
    ASSERT_LE(std::fabs(t - before), 0.005 + 1e-12);
    if (step == 5) {
      EXPECT_NEAR(before - t, 0.005, 1e-12);
    }
  }
  EXPECT_NEAR(t, 2, 1e-4);
  EXPECT_LT(std::fabs(t - before), 1e-6);
}

TEST(Tiger, NonFiniteIsAgreedAndNamed) {
  Communicator& dp = dp_group();
  const int last = dp.size() - 1;
  for (const double bad :
       {std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity()}) {
    ParameterSet set = model();
    const Vector before = values(set[1].value);
    auto tiger = Optimizer::make(dense(), set);
    tiger->begin_step(4, 1, {}, dp);
    accumulate(set, 4, 0, 8, 1, dp);
    if (dp.rank() == last) {
      add_to_sink(set[2], 1, bad);
      add_to_sink(set[1], 3, bad);
    }
    try {
      tiger->finish_step(4, 1e-3, dp);
      FAIL() << "no error";
    } catch (const NumericError& e) {
      const std::string text = e.what();
      EXPECT_NE(text.find("gradient of w is"), std::string::npos) << text;
      EXPECT_NE(text.find(fmt::format("dp rank {}", last)), std::string::npos) << text;
    }
    EXPECT_EQ(values(set[1].value), before);
  }
}

// The rate of the lazy rule is for rare tokens; a position is in every text.
TEST(Tiger, PositionRowsMoveAtThePlainRate) {
  Communicator& dp = dp_group();
  const auto stepped = [&](AxisRole role, double rate) {
    ParameterSet set;
    set.add(parameter("table", ParamKind::embedding, {4, 3}, DType::f64, 1));
    set[0].axes[0].role = role;
    OptimizerConfig config;
    config.embedding_rate = rate;
    auto tiger = Optimizer::make(config, set);
    std::vector<uint8_t> bits(4, 1);
    TensorView bitmaps[] = {TensorView(bits.data(), {4}, DType::u8)};
    tiger->begin_step(0, 1, bitmaps, dp);
    for (int64_t i = 0; i < 12; ++i) add_to_sink(set[0], i, gradient(0, i, 0, dp.rank()));
    tiger->finish_step(0, 1e-3, dp);
    return values(set[0].value);
  };
  EXPECT_EQ(stepped(AxisRole::position, 10), stepped(AxisRole::vocab, 1));
  EXPECT_NE(stepped(AxisRole::vocab, 10), stepped(AxisRole::vocab, 1));
}

// Momentum and parameters are the same bits everywhere, in f32 too, and a big table goes in several
// buckets.
TEST(Tiger, RanksStayBitIdentical) {
  Communicator& dp = dp_group();
  ParameterSet set;
  const int64_t rows = 9000, columns = 256;  // 9.2 MB
  set.add(parameter("frozen table", ParamKind::embedding, {2, 2}, DType::f32, 1));
  set[0].frozen = true;
  set.add(parameter("tokens", ParamKind::embedding, {rows, columns}, DType::f32, 0.05));
  set.add(parameter("w", ParamKind::weight, {64, 64}, DType::f32, 0.05));
  auto tiger = Optimizer::make(OptimizerConfig(), set);
  const Vector first = values(set[1].value);
  for (int64_t step = 0; step < 2; ++step) {
    std::vector<uint8_t> none(2), bits(rows);
    for (int64_t r = 0; r < rows; ++r)
      bits[static_cast<size_t>(r)] = r % 9 != 0 && r % dp.size() == dp.rank();
    const std::vector<uint8_t> mine = bits;
    TensorView bitmaps[] = {TensorView(none.data(), {2}, DType::u8),
                            TensorView(bits.data(), {rows}, DType::u8)};
    tiger->begin_step(step, 1, bitmaps, dp);
    for (int64_t r = 0; r < rows; ++r)
      if (mine[static_cast<size_t>(r)])
        for (int64_t i = r * columns; i < (r + 1) * columns; ++i)
          add_to_sink(set[1], i, std::sin(static_cast<double>(i + step)));
    for (int64_t i = 0; i < set[2].value.elements(); ++i)
      add_to_sink(set[2], i, gradient(2, i, step, dp.rank()));
    tiger->finish_step(step, 1e-3, dp);
    for (const Parameter& p : set) EXPECT_TRUE(same_on_all_ranks(p.value, dp)) << p.name;
    for (const auto& slot : tiger->slots()) EXPECT_TRUE(same_on_all_ranks(slot.value, dp));
  }
  // Rows that nobody touched stayed, all others moved.
  const Vector now = values(set[1].value);
  for (size_t r = 0; r < static_cast<size_t>(rows); ++r) {
    const size_t i = r * static_cast<size_t>(columns) + 1;
    ASSERT_EQ(now[i] == first[i], r % 9 == 0) << r;
  }
}

TEST(Tiger, NormIsThatOfTheMomentum) {
  Communicator& dp = dp_group();
  ParameterSet set = model();
  auto tiger = Optimizer::make(dense(), set);
  tiger->begin_step(0, 1, {}, dp);
  accumulate(set, 0, 0, 6, 1, dp);
  tiger->finish_step(0, 1e-3, dp);
  double squares = 0;
  for (const auto& slot : tiger->slots())
    for (int64_t i = 0; i < slot.value.elements(); ++i)
      squares += slot.value.as<double>()[i] * slot.value.as<double>()[i];
  EXPECT_NEAR(tiger->last_gradient_norm(), std::sqrt(squares), 1e-14);
}

}  // namespace
}  // namespace amur
