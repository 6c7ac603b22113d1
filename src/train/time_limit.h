// When the batch system ends this job, and what still fits before.
#pragma once

#include <functional>
#include <optional>
#include <string>

namespace amur {

class TimeLimit {
 public:
  // Reads SLURM_JOB_END_TIME (seconds since 1970); without it there is no limit.
  // `environment` gives the value of a variable, "" if unset; `now` is seconds since 1970.
  TimeLimit(const std::function<std::string(const char*)>& environment,
            std::function<double()> now);
  // Of this process, by the system's clock.
  TimeLimit();

  bool known() const { return end_.has_value(); }
  double seconds_left() const;  // infinite without a limit

  // Measured by the run, in seconds.
  void step_took(double seconds) { step_ = seconds; }
  void write_took(double seconds) { write_ = seconds; }
  double last_step() const { return step_; }

  // Between steps: another step and its checkpoint might not fit, with some room for either.
  bool no_step_fits() const;
  // A checkpoint as long as the last one does not fit.
  bool no_checkpoint_fits() const;
  // Inside a step: one as long as the last does not fit, so that this one will hardly be finished.
  bool step_is_lost() const;

 private:
  std::optional<double> end_;
  std::function<double()> now_;
  double step_ = 0, write_ = 0;
};

}  // namespace amur
