#include "src/train/time_limit.h"

#include <chrono>
#include <cstdlib>
#include <limits>

namespace amur {
namespace {

// Room for times that vary, and for what comes before a step and after a checkpoint.
constexpr double kFactor = 1.5;
constexpr double kSeconds = 5;

std::string process_variable(const char* name) {
  const char* value = std::getenv(name);
  return value ? value : "";
}

double system_now() {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

}  // namespace

TimeLimit::TimeLimit() : TimeLimit(process_variable, system_now) {}

TimeLimit::TimeLimit(const std::function<std::string(const char*)>& environment,
                     std::function<double()> now)
    : now_(std::move(now)) {
  const double end = std::atof(environment("SLURM_JOB_END_TIME").c_str());
  if (end > 0) end_ = end;
}

double TimeLimit::seconds_left() const {
  return end_ ? *end_ - now_() : std::numeric_limits<double>::infinity();
}

bool TimeLimit::no_step_fits() const {
  return seconds_left() < kFactor * (step_ + write_) + kSeconds;
}

bool TimeLimit::no_checkpoint_fits() const {
  return seconds_left() < write_;
}

bool TimeLimit::step_is_lost() const {
  return seconds_left() < step_;
}

}  // namespace amur
