// The learning rate of a run behind a growth.
#pragma once

#include <cstdint>

#include "src/train/config/config.h"

namespace amur {

// All 0: the schedule goes on as it was. Otherwise, behind the growth, the rate rises in a straight
// line to the peak, and falls in a straight line to optimizer.final_fraction. LEMON (arXiv
// 2310.07999) keeps the largest rate of a run from scratch, warms up again for a short while and
// lets the rate fall sooner.
struct GrowthSchedule {
  int64_t warmup_steps = 0;  // to the peak; 0: the first step has it
  double peak_rate = 0;      // of optimizer.learning_rate; 0: 1, the largest rate as it was
  int64_t decay_steps = 0;  // from the growth to the end of the fall; 0: to the end of the schedule

  bool changes() const { return warmup_steps > 0 || peak_rate > 0 || decay_steps > 0; }
};

// Writes the schedule of a run that grew behind `step` steps into optimizer.schedule and
// optimizer.schedule_points. UsageError where the end of the run's schedule is not known from
// `config`, or lies before the peak.
void apply(const GrowthSchedule& schedule, int64_t step, Config& config);

}  // namespace amur
