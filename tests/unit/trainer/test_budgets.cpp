// Automatic budgets: the choice, and that costs are what a chunk really takes.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "comm/process_grid.h"
#include "comm/runtime.h"
#include "src/core/choices.h"
#include "src/train/budgets.h"
#include "src/train/two_pass.h"
#include "tests/support/mpi_runtime.h"

namespace amur {
namespace {

constexpr size_t kMiB = size_t{1} << 20;

// Small chunks that are a third slower, large ones that take twice as much scratch.
const ChunkCost kSizes[] = {{1024, 64 * kMiB, 16 * kMiB, 1024 * 1.33},
                            {4096, 256 * kMiB, 64 * kMiB, 4096},
                            {16384, 1024 * kMiB, 256 * kMiB, 16384 * 0.95}};

TEST(Budgets, RoomForEverythingTakesTheQuickest) {
  const Budgets chosen = choose_budgets(kSizes, 65536, 8192 * kMiB);
  EXPECT_EQ(chosen.chunk_tokens, 16384);
  EXPECT_EQ(chosen.activation_budget, static_cast<int64_t>((8192 - 512) * kMiB));
}

// 64 Ki tokens take 4 GiB. In 4.25 GiB smaller chunks leave room for all of them, which is worth
// more than the 5 % of the large ones: those would compute a fifteenth twice.
TEST(Budgets, WhatIsKeptCountsToo) {
  const Budgets chosen = choose_budgets(kSizes, 65536, 4240 * kMiB);
  EXPECT_EQ(chosen.chunk_tokens, 16384);
  EXPECT_EQ(choose_budgets(kSizes, 65536, 1600 * kMiB).chunk_tokens, 16384);
  // 1.5 GiB hold one large chunk and 3/8 of the step with small scratch.
  EXPECT_EQ(choose_budgets(kSizes, 65536, 1535 * kMiB).chunk_tokens, 4096);
  EXPECT_EQ(choose_budgets(kSizes, 65536, 300 * kMiB).chunk_tokens, 1024);
}

TEST(Budgets, NothingFitsTakesTheFirstAndKeepsNothing) {
  const Budgets chosen = choose_budgets(kSizes, 65536, 90 * kMiB);
  EXPECT_EQ(chosen.chunk_tokens, 1024);
  EXPECT_EQ(chosen.activation_budget, 0);
}

struct Shape {
  const char* name;
  std::vector<std::string> overrides;
};

class BudgetsOfModels : public ::testing::TestWithParam<Shape> {
 protected:
  static Config config() {
    std::vector<std::string> overrides = {"model.layers=3", "model.hidden=64", "model.heads=4",
                                          "model.max_length=32"};
    overrides.insert(overrides.end(), GetParam().overrides.begin(), GetParam().overrides.end());
    Config c = parse_config("data:\n  sources:\n    - format: trans-de-en\n", "test", overrides);
    c.model.vocab = 100;
    return c;
  }

  static LocalBatch batch(int64_t texts) {
    LocalBatch b;
    const RandomKey key(7);
    for (int64_t i = 0; i < 2 * texts; ++i) {
      TextUnit unit;
      unit.sample = i / 2;
      unit.view = i < texts ? kViewQuery : kViewPositive;
      unit.first = static_cast<int32_t>(b.tokens.size());
      unit.length = static_cast<int32_t>(4 + key.bits64(static_cast<uint64_t>(i)) % 28);
      for (int32_t k = 0; k < unit.length; ++k) b.tokens.push_back(k % 100);
      (i < texts ? b.queries : b.documents).push_back(unit);
    }
    return b;
  }
};

TEST_P(BudgetsOfModels, CostsAreWhatAChunkTakes) {
  const Config c = config();
  EmbeddingModel model(c, c.train.precision);
  model.initialise(3);
  const double before = static_cast<double>(model.parameters()[0].value.as<float>()[5]);
  const LocalBatch b = batch(200);
  const int64_t sizes[] = {256, 1024, 4096, 16384};
  const std::vector<ChunkCost> measured =
      measure_chunks(model, b, sizes, size_t{1} << 40, RandomKey(1));
  // 400 texts of 18 tokens: nothing to learn from 16,384.
  ASSERT_EQ(measured.size(), 3u);
  const std::vector<ChunkCost> estimated = estimate_chunks(model, c.model, sizes);
  for (size_t i = 0; i < measured.size(); ++i) {
    const ChunkCost &m = measured[i], &e = estimated[i];
    EXPECT_EQ(m.tokens, sizes[i]);
    EXPECT_GT(m.seconds, 0);
    const auto ratio = [](size_t a, size_t to) {
      return static_cast<double>(a) / static_cast<double>(to);
    };
    EXPECT_NEAR(ratio(m.saved, e.saved), 1, 0.05) << m.tokens;
    EXPECT_GE(ratio(e.scratch, m.scratch), 0.95) << m.tokens;
    EXPECT_LE(ratio(e.scratch, m.scratch), 2.2) << m.tokens;
  }
  // Nothing of it stays.
  for (const Parameter& p : model.parameters()) EXPECT_FALSE(p.sink.defined()) << p.name;
  EXPECT_EQ(model.parameters()[0].value.as<float>()[5], before);
  // Too little room for the next size.
  EXPECT_EQ(measure_chunks(model, b, sizes, 2 * measured[0].saved, RandomKey(1)).size(), 1u);
}

INSTANTIATE_TEST_SUITE_P(
    All, BudgetsOfModels,
    ::testing::Values(Shape{"pre", {}}, Shape{"post", {"model.norm_position=post"}},
                      Shape{"bf16", {"train.precision=bf16"}},
                      Shape{"gated", {"model.activation=geglu", "model.ffn=192"}},
                      Shape{"dropout", {"model.dropout=0.1", "model.attention_dropout=0.1"}},
                      Shape{"separate", {"model.towers=separate", "model.projection=32"}}),
    [](const auto& model) { return model.param.name; });

// What is configured is not touched; what is auto is chosen, noted and found again.
TEST(Budgets, Planned) {
  Runtime& runtime = test_runtime();
  ProcessGrid grid(runtime, {runtime.size(), 1});
  Config c = parse_config("data:\n  sources:\n    - format: trans-de-en\n", "test",
                          {"model.layers=1", "model.hidden=32", "model.heads=2"});
  c.model.vocab = 100;
  EmbeddingModel model(c, c.train.precision);
  const auto plan = [&](const std::string& device) {
    return plan_budgets({.config = &c, .model = &model, .device_name = device, .first_batch = {}},
                        grid, runtime);
  };
  choices().replace({});
  EXPECT_EQ(plan("CPU").chunk_tokens, 4096);
  ASSERT_EQ(choices().entries().size(), 1u);
  const std::string name = choices().entries().begin()->first;
  EXPECT_THAT(name, ::testing::StartsWith("budget/chunk_tokens/CPU/"));
  // As after a resume, from a machine that had less memory.
  choices().replace({{name, "512"}});
  EXPECT_EQ(plan("CPU").chunk_tokens, 512);
  EXPECT_EQ(plan("another").chunk_tokens, 4096);

  choices().replace({});
  c.train.chunk_tokens = 300;
  EXPECT_EQ(plan("CPU").chunk_tokens, 300);
  EXPECT_GT(plan("CPU").activation_budget, 0);
  c.train.activation_budget = 12345;
  EXPECT_EQ(plan("CPU").activation_budget, 12345);
  EXPECT_TRUE(choices().entries().empty());
}

}  // namespace
}  // namespace amur
