#include "src/train/config/growth_schedule.h"

#include <algorithm>

#include "src/core/error.h"

namespace amur {

void apply(const GrowthSchedule& schedule, int64_t step, Config& config) {
  if (!schedule.changes()) return;
  const int64_t planned =
      config.train.schedule_steps > 0 ? config.train.schedule_steps : config.train.steps;
  if (schedule.decay_steps == 0 && planned == 0)
    throw UsageError(
        "the learning rate after growth: the steps of this run follow from train.epochs; say with "
        "--decay-steps how many from here the rate is to fall over");
  const int64_t warmup = std::max<int64_t>(schedule.warmup_steps, 1);
  const int64_t end = schedule.decay_steps > 0 ? step + schedule.decay_steps : planned;
  if (end <= step + warmup)
    throw UsageError(
        "the learning rate after growth at step {}: it would fall until step {} and rise until "
        "{}; take a larger --decay-steps or a smaller --warmup-steps",
        step, end, step + warmup);
  OptimizerConfig& o = config.optimizer;
  const double peak = schedule.peak_rate > 0 ? schedule.peak_rate : 1;
  o.schedule = ScheduleKind::piecewise;
  // Points are steps counted from 0; the first step of a warm-up has a share of the rate, not 0.
  o.schedule_points.clear();
  if (step > 0) o.schedule_points.emplace_back(step - 1, 0.0);
  if (step == 0 && warmup > 1)
    o.schedule_points.emplace_back(0, peak / static_cast<double>(warmup));
  o.schedule_points.emplace_back(step + warmup - 1, peak);
  o.schedule_points.emplace_back(end - 1, o.final_fraction * peak);
}

}  // namespace amur
