// The sum over ranks in buckets: ready in any order on any rank, the same bits as all at the end,
// and rounded without loss in the long run.
#include <gtest/gtest.h>

#include <cstring>
#include <limits>
#include <memory>
#include <vector>

#include "comm/process_grid.h"
#include "tests/support/mpi_runtime.h"
#include "tests/unit/loss/optimizer_fixture.h"

namespace amur {
namespace {

constexpr int64_t kSteps = 12;

// A table, and three layers of a weight and a bias.
ParameterSet layered() {
  ParameterSet set;
  set.add(parameter("tokens", ParamKind::embedding, {kRows, kColumns}, DType::f32, 0.05));
  for (int layer = 0; layer < 3; ++layer) {
    set.add(parameter(fmt::format("w{}", layer), ParamKind::weight, {40, 30}, DType::f32, 0.1));
    set.add(parameter(fmt::format("b{}", layer), ParamKind::bias, {7}, DType::f32, 0.01));
  }
  set.add(parameter("scale", ParamKind::scalar, {1}, DType::f32, 3));
  return set;
}

class Sync : public ::testing::Test {
 protected:
  Sync() : grid(test_runtime(), {test_runtime().size(), 1}), dp(grid.dp()) {}
  ProcessGrid grid;
  Communicator& dp;

  SyncOptions options(ParameterSet& set, bool overlap, bool rounded = false) {
    // A grid of its own for each kind of stream.
    grids.push_back(std::make_unique<ProcessGrid>(test_runtime(), grid.shape()));
    SyncOptions o;
    o.stream = group().side_stream({.overlap = overlap, .through_nodes = false});
    for (size_t layer = 3; layer-- > 0;)
      o.groups.push_back({&set[1 + 2 * layer], &set[2 + 2 * layer]});
    o.rounded = rounded;
    return o;
  }
  Communicator& group() { return grids.back()->dp(); }

  // Steps of Tiger; returns the momentum and parameters as the checkpoint would hold them.
  std::vector<double> run(ParameterSet& set, Optimizer& tiger, bool announce, double bad = 0) {
    for (int64_t step = 0; step < kSteps; ++step) {
      // Each rank touches other rows, some nobody does in this step.
      std::vector<uint8_t> bits(kRows, 0);
      for (int64_t r = 0; r < kRows; ++r)
        bits[static_cast<size_t>(r)] = (r + step) % 3 == 0 && r % dp.size() == dp.rank();
      const std::vector<uint8_t> mine = bits;
      TensorView bitmaps[] = {TensorView(bits.data(), {kRows}, DType::u8)};
      tiger.begin_step(step, 1, bitmaps, group());
      for (size_t p = 0; p < set.size(); ++p) {
        if (p + 1 == set.size() && dp.rank() != 0) continue;
        for (int64_t i = 0; i < set[p].value.elements(); ++i)
          if (p > 0 || mine[static_cast<size_t>(i / kColumns)])
            add_to_sink(set[p], i, gradient(p, i, step, dp.rank()));
      }
      if (bad != 0 && dp.rank() == dp.size() - 1) add_to_sink(set[3], 5, bad);
      // No two ranks in the same order, and some announce only one of them.
      if (announce)
        for (size_t k = 0; k < 3; ++k)
          if (dp.rank() % 3 != 2 || k == 1)
            tiger.group_done((k + static_cast<size_t>(dp.rank())) % 3, group());
      tiger.finish_step(step, 1e-3, group());
    }
    tiger.settle(group());
    std::vector<double> all;
    for (const auto& slot : tiger.slots()) {
      EXPECT_TRUE(same_on_all_ranks(slot.value, dp)) << slot.parameter->name;
      if (slot.per_row) continue;
      for (int64_t i = 0; i < slot.value.elements(); ++i) all.push_back(slot.value.as<float>()[i]);
    }
    momenta_ = all.size();
    for (const Parameter& p : set)
      for (const double v : values(p.value)) all.push_back(v);
    return all;
  }

  std::vector<std::unique_ptr<ProcessGrid>> grids;
  size_t momenta_ = 0;  // of what `run` returns, the first so many
};

TEST_F(Sync, OverlapChangesNoBit) {
  std::vector<std::vector<double>> results;
  for (const bool overlap : {false, true})
    for (const bool announce : {false, true}) {
      ParameterSet set = layered();
      auto tiger = Optimizer::make(OptimizerConfig(), set);
      tiger->set_sync(options(set, overlap));
      results.push_back(run(set, *tiger, announce));
    }
  for (const auto& r : results) EXPECT_EQ(r, results[0]);
}

TEST_F(Sync, RoundingIsMadeUpFor) {
  const auto result = [&](bool rounded) {
    ParameterSet set = layered();
    OptimizerConfig config;
    auto tiger = Optimizer::make(config, set);
    const size_t before = tiger->state_bytes();
    tiger->set_sync(options(set, true, rounded));
    EXPECT_EQ(tiger->state_bytes() > before, rounded);
    return run(set, *tiger, true);
  };
  const auto exact = result(false), rounded = result(true);
  // After `settle` the momentum is that of fp32 sums, to fp32 rounding: bf16 has 8 bits.
  for (size_t i = 0; i < momenta_; ++i) ASSERT_NEAR(rounded[i], exact[i], 1e-6) << i;
  // On the way it was not: signs differ somewhere, so parameters do.
  EXPECT_EQ(rounded == exact, dp.size() == 1);
}

TEST_F(Sync, NonFiniteIsNamedAlsoWhenItsSumWasUnderWay) {
  for (const bool announce : {false, true}) {
    ParameterSet set = layered();
    auto tiger = Optimizer::make(OptimizerConfig(), set);
    tiger->set_sync(options(set, true));
    const std::vector<double> before = values(set[3].value);
    try {
      run(set, *tiger, announce, std::numeric_limits<double>::infinity());
      FAIL() << "no error";
    } catch (const NumericError& e) {
      const std::string text = e.what();
      EXPECT_NE(text.find("gradient of w1 is"), std::string::npos) << text;
      EXPECT_NE(text.find(fmt::format("dp rank {}", dp.size() - 1)), std::string::npos) << text;
    }
    EXPECT_EQ(values(set[3].value), before);
  }
}

}  // namespace
}  // namespace amur
