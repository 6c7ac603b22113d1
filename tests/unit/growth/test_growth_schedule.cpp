// The learning rate behind a growth.
#include <gtest/gtest.h>

#include "src/core/error.h"
#include "src/train/config/growth_schedule.h"
#include "src/train/optimizer/optimizer.h"

namespace amur {
namespace {

Config run_of(int64_t steps) {
  Config config;
  config.train.steps = steps;
  config.optimizer.final_fraction = 0.1;
  return config;
}

TEST(GrowthSchedule, GoesOnUnlessAskedOtherwise) {
  Config config = run_of(1000);
  apply({}, 200, config);
  EXPECT_EQ(to_yaml(config), to_yaml(run_of(1000)));
}

TEST(GrowthSchedule, WarmsUpAgainAndFallsSooner) {
  Config config = run_of(1000);
  apply({.warmup_steps = 60, .decay_steps = 400}, 200, config);
  const auto at = [&](int64_t step) { return schedule_factor(config.optimizer, step, 1000); };
  EXPECT_DOUBLE_EQ(at(200), 1.0 / 60);
  EXPECT_DOUBLE_EQ(at(229), 0.5);
  EXPECT_DOUBLE_EQ(at(259), 1);
  EXPECT_DOUBLE_EQ(at(429), 0.55);
  EXPECT_DOUBLE_EQ(at(599), 0.1);
  EXPECT_DOUBLE_EQ(at(5000), 0.1);
  // What is written is read back.
  config.data.sources.emplace_back().path = "pairs.tsv";
  EXPECT_EQ(parse_config(to_yaml(config), "grown", {}).optimizer.schedule_points,
            config.optimizer.schedule_points);
}

TEST(GrowthSchedule, ToTheEndOfTheRunWithAnotherPeak) {
  Config config = run_of(1000);
  config.train.schedule_steps = 800;
  apply({.peak_rate = 0.5}, 200, config);
  const auto at = [&](int64_t step) { return schedule_factor(config.optimizer, step, 1000); };
  EXPECT_DOUBLE_EQ(at(200), 0.5);
  EXPECT_DOUBLE_EQ(at(799), 0.05);
  // From the beginning, too.
  apply({.warmup_steps = 4}, 0, config);
  EXPECT_DOUBLE_EQ(at(0), 0.25);
  EXPECT_DOUBLE_EQ(at(3), 1);
}

TEST(GrowthSchedule, SaysWhatIsMissing) {
  const auto message = [](const GrowthSchedule& schedule, int64_t step, Config config) {
    try {
      apply(schedule, step, config);
      return std::string();
    } catch (const UsageError& e) {
      return std::string(e.what());
    }
  };
  EXPECT_NE(message({.warmup_steps = 5}, 10, run_of(0)).find("--decay-steps"), std::string::npos);
  EXPECT_NE(message({.warmup_steps = 5}, 996, run_of(1000)).find("rise until 1001"),
            std::string::npos);
  EXPECT_EQ(message({.warmup_steps = 5, .decay_steps = 50}, 10, run_of(0)), "");
}

}  // namespace
}  // namespace amur
