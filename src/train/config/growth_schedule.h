// The learning rate of a run behind a growth.
#pragma once

#include <cstdint>

#include "src/train/config/config.h"

namespace amur {

// Writes the schedule of a run that grew behind `step` steps into optimizer.schedule and
// optimizer.schedule_points. UsageError where the end of the run's schedule is not known from
// `config`, or lies before the peak.
void apply(const GrowthSchedule& schedule, int64_t step, Config& config);

}  // namespace amur
