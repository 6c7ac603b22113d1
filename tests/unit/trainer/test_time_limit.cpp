#include "src/train/time_limit.h"

#include <gtest/gtest.h>

#include <cmath>

namespace amur {
namespace {

TimeLimit ending_at(const std::string& end, const double& now) {
  return TimeLimit(
      [end](const char* name) {
        return std::string(name) == "SLURM_JOB_END_TIME" ? end : std::string();
      },
      [&now] { return now; });
}

TEST(TimeLimit, NoLimit) {
  double now = 1000;
  for (const char* end : {"", "0", "Unknown"}) {
    TimeLimit limit = ending_at(end, now);
    limit.step_took(1e9);
    EXPECT_FALSE(limit.known());
    EXPECT_TRUE(std::isinf(limit.seconds_left()));
    EXPECT_FALSE(limit.no_step_fits() || limit.no_checkpoint_fits() || limit.step_is_lost());
  }
}

TEST(TimeLimit, LeavesRoomForAStepAndItsCheckpoint) {
  double now = 1000;
  TimeLimit limit = ending_at("2000", now);
  limit.step_took(30);
  limit.write_took(10);
  EXPECT_EQ(limit.seconds_left(), 1000);
  now = 2000 - 66;  // 1.5 * (30 + 10) + 5 = 65
  EXPECT_FALSE(limit.no_step_fits());
  now = 2000 - 64;
  EXPECT_TRUE(limit.no_step_fits());
  EXPECT_FALSE(limit.step_is_lost());
  now = 2000 - 29;
  EXPECT_TRUE(limit.step_is_lost());
  EXPECT_FALSE(limit.no_checkpoint_fits());
  now = 2000 - 9;
  EXPECT_TRUE(limit.no_checkpoint_fits());
}

}  // namespace
}  // namespace amur
