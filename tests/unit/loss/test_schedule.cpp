// Schedules, clipping and parameter groups as tables.
#include <gtest/gtest.h>

#include "src/train/optimizer/optimizer.h"

namespace amur {
namespace {

TEST(Schedule, PiecewiseLinear) {
  OptimizerConfig config;
  config.schedule = ScheduleKind::piecewise;
  config.schedule_points = {{10, 1.0}, {30, 0.5}, {40, 0.5}, {140, 0.0}};
  // A point (0, 0) comes first, and the last one holds on.
  const std::pair<int64_t, double> table[] = {{0, 0},     {1, 0.1},  {5, 0.5},  {10, 1},
                                              {20, 0.75}, {30, 0.5}, {35, 0.5}, {90, 0.25},
                                              {140, 0},   {1000, 0}};
  for (const auto& [step, factor] : table)
    EXPECT_NEAR(schedule_factor(config, step, 7), factor, 1e-15) << step;

  config.schedule_points = {{0, 1.0}, {100, 0.1}};  // no warm-up
  EXPECT_EQ(schedule_factor(config, 0, 7), 1);
  EXPECT_NEAR(schedule_factor(config, 50, 7), 0.55, 1e-15);
  EXPECT_EQ(schedule_factor(config, 101, 7), 0.1);
  config.schedule_points = {{0, 0.3}};
  EXPECT_EQ(schedule_factor(config, 12, 7), 0.3);
  config.schedule_points = {};
  EXPECT_EQ(schedule_factor(config, 12, 7), 1);
}

TEST(Schedule, WarmupAndCosine) {
  OptimizerConfig config;
  config.schedule = ScheduleKind::cosine;
  config.warmup_steps = 10;
  config.final_fraction = 0.2;
  const std::pair<int64_t, double> table[] = {
      {0, 0.1},   {4, 0.5},   {9, 1},     {59, 0.6}, {34, 0.2 + 0.4 * (1 + 0.70710678118654752)},
      {109, 0.2}, {110, 0.2}, {5000, 0.2}};
  for (const auto& [step, factor] : table)
    EXPECT_NEAR(schedule_factor(config, step, 110), factor, 1e-15) << step;
  config.warmup_steps = 0;
  EXPECT_LT(schedule_factor(config, 0, 100), 1);
  EXPECT_GT(schedule_factor(config, 0, 100), 0.999);
  config.warmup_steps = 20;  // longer than the run
  EXPECT_NEAR(schedule_factor(config, 9, 10), 0.5, 1e-15);
  EXPECT_EQ(schedule_factor(config, 25, 10), 0.2);
}

TEST(Clip, MinAndSoft) {
  OptimizerConfig config;
  config.clip_norm = 2;
  for (double norm : {0.0, 1.0, 2.0, 8.0}) {
    config.clip = ClipKind::none;
    EXPECT_EQ(clip_factor(config, norm), 1);
    config.clip = ClipKind::min;
    EXPECT_EQ(clip_factor(config, norm), norm <= 2 ? 1 : 2 / norm);
    config.clip = ClipKind::soft;
    EXPECT_EQ(clip_factor(config, norm), 2 / (norm + 2));
  }
}

TEST(ParameterGroups, TheFirstThatMatchesApplies) {
  ParameterSet parameters;
  const auto add = [&](const char* name, ParamKind kind, int layer) {
    Parameter p;
    p.name = name;
    p.kind = kind;
    p.layer = layer;
    p.axes = {{4, AxisRole::fixed}};
    p.learning_rate_multiplier = 2;
    parameters.add(std::move(p));
  };
  add("tokens", ParamKind::embedding, -1);
  add("layers.0.w", ParamKind::weight, 0);
  add("layers.0.gain", ParamKind::gain, 0);
  add("layers.1.w", ParamKind::weight, 1);
  OptimizerConfig config;
  config.groups = {
      {.role = "weight", .layer = 0, .learning_rate = 0.5, .decay = 3, .frozen = false},
      {.role = "", .layer = 0, .learning_rate = 7, .decay = 1, .frozen = true},
      {.role = "embedding", .layer = -1, .learning_rate = 0.1, .decay = 0, .frozen = false}};
  apply_parameter_groups(config, parameters);
  EXPECT_EQ(parameters.find("layers.0.w")->learning_rate_multiplier, 1);
  EXPECT_EQ(parameters.find("layers.0.w")->decay_multiplier, 3);
  EXPECT_FALSE(parameters.find("layers.0.w")->frozen);
  EXPECT_TRUE(parameters.find("layers.0.gain")->frozen);
  EXPECT_DOUBLE_EQ(parameters.find("tokens")->learning_rate_multiplier, 0.2);
  EXPECT_EQ(parameters.find("tokens")->decay_multiplier, 0);
  EXPECT_EQ(parameters.find("layers.1.w")->learning_rate_multiplier, 2);

  config.groups = {
      {.role = "wieght", .layer = -1, .learning_rate = 1, .decay = 1, .frozen = false}};
  EXPECT_THROW(apply_parameter_groups(config, parameters), UsageError);
}

}  // namespace
}  // namespace amur
