#include <algorithm>
#include <cmath>
#include <numbers>

#include "src/train/optimizer/optimizer.h"

namespace amur {
namespace {

double piecewise(const std::vector<std::pair<int64_t, double>>& points, int64_t step) {
  if (points.empty()) return 1;
  std::pair<int64_t, double> before{0, points.front().first == 0 ? points.front().second : 0};
  for (const auto& point : points) {
    if (step < point.first) {
      const double share = static_cast<double>(step - before.first) /
                           static_cast<double>(point.first - before.first);
      return before.second + (point.second - before.second) * share;
    }
    before = point;
  }
  return before.second;
}

double cosine(const OptimizerConfig& config, int64_t step, int64_t total_steps) {
  const int64_t warmup = config.warmup_steps, done = step + 1;
  if (done <= warmup) return static_cast<double>(done) / static_cast<double>(warmup);
  if (done >= total_steps) return config.final_fraction;
  const double share =
      static_cast<double>(done - warmup) / static_cast<double>(total_steps - warmup);
  return config.final_fraction +
         (1 - config.final_fraction) * 0.5 * (1 + std::cos(std::numbers::pi * share));
}

}  // namespace

double schedule_factor(const OptimizerConfig& config, int64_t step, int64_t total_steps) {
  return config.schedule == ScheduleKind::piecewise ? piecewise(config.schedule_points, step)
                                                    : cosine(config, step, total_steps);
}

double clip_factor(const OptimizerConfig& config, double norm) {
  switch (config.clip) {
    case ClipKind::none:
      return 1;
    case ClipKind::min:
      return norm > config.clip_norm ? config.clip_norm / norm : 1;
    case ClipKind::soft:
      return config.clip_norm / (norm + config.clip_norm);
  }
  return 1;
}

}  // namespace amur
