// Learning rates beside the main one, and how sign optimizers move single numbers (temperature,
// bias): see Optimizer::make.
#pragma once

#include "src/train/config/config.h"

namespace amur {

// Momentum of a scalar at which its step reaches full length. dL/dt and dL/db are pure numbers: a
// momentum below it means that a change of 1 in t would change the loss by less than 0.01.
inline constexpr double kScalarThreshold = 0.01;

// `alpha` is optimizer.learning_rate times the schedule; this is `rate` under the same schedule.
inline double scheduled(const OptimizerConfig& config, double rate, double alpha) {
  return config.learning_rate > 0 ? rate * alpha / config.learning_rate : 0;
}

}  // namespace amur
