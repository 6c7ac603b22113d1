// What `train.growth` means for a run that goes on from a checkpoint.
#include <gtest/gtest.h>

#include "src/train/growth/run_growth.h"
#include "tests/unit/growth/fixture.h"

namespace amur {
namespace {

Config growing() {
  Config config = test::config_of(test::small_config());
  config.model.vocab = 0;  // a configuration does not know it
  config.train.growth.resize(2);
  config.train.growth[0].at_step = 10;
  config.train.growth[0].options.hidden = 48;
  config.train.growth[1].at_step = 20;
  config.train.growth[1].options.layers = 4;
  config.train.growth[1].schedule.warmup_steps = 3;
  config.train.growth[1].schedule.decay_steps = 30;
  config.optimizer.groups.resize(1);
  config.optimizer.groups[0].layer = 1;
  return config;
}

// A checkpoint behind `step` that grew in a run at these steps.
CheckpointInfo checkpoint(int64_t step, const std::vector<std::string>& entries) {
  CheckpointInfo info;
  info.step = step;
  info.lineage = {R"({"widened_from":"by hand","step":3})"};
  for (const std::string& entry : entries)
    info.lineage.push_back(
        fmt::format(R"({{"step":10,"from":1,"to":2,"parameters_before":1,"parameters_after":2,)"
                    R"("proof":"skipped","train.growth":{{{}}}}})",
                    entry));
  return info;
}

const char* const kFirst = R"("at_step":"10","hidden":"48","split":"noise")";
const char* const kSecond = R"("at_step":"20","layers":"4")";

std::string refusal(const Config& config, const CheckpointInfo& info) {
  try {
    config_behind_growth(config, info, "c.h5");
  } catch (const UsageError& e) {
    return e.what();
  }
  return "";
}

TEST(RunGrowth, EntriesBehindACheckpointAreApplied) {
  const Config config = growing();
  EXPECT_EQ(config_behind_growth(config, checkpoint(9, {}), "c.h5").train.growth.size(), 2u);
  const Config one = config_behind_growth(config, checkpoint(15, {kFirst}), "c.h5");
  EXPECT_EQ(one.model.hidden, 48);
  EXPECT_EQ(one.model.layers, 2);
  EXPECT_EQ(one.model.vocab, 0);
  ASSERT_EQ(one.train.growth.size(), 1u);
  EXPECT_EQ(one.train.growth[0].at_step, 20);
  const Config two = config_behind_growth(config, checkpoint(20, {kFirst, kSecond}), "c.h5");
  EXPECT_EQ(two.model.layers, 4);
  EXPECT_TRUE(two.train.growth.empty());
  EXPECT_EQ(two.optimizer.groups[0].layer, 2);  // follows its layer
  EXPECT_EQ(one.optimizer.schedule, ScheduleKind::cosine);
  ASSERT_EQ(two.optimizer.schedule_points.size(), 3u);  // 0 at 19, the peak at 22, the end at 49
  EXPECT_EQ(two.optimizer.schedule_points[1].first, 22);
  // What the grown checkpoint carries says the same.
  EXPECT_TRUE(compare_configs(two, config_behind_growth(one, checkpoint(20, {kFirst, kSecond}), ""))
                  .empty());
}

TEST(RunGrowth, IsDueAtItsStepUnlessTheCheckpointHasItBehindIt) {
  const Config config = growing();
  EXPECT_FALSE(growth_is_due(config, 9));
  EXPECT_TRUE(growth_is_due(config, 10));
  EXPECT_TRUE(growth_is_due(config_behind_growth(config, checkpoint(10, {}), "c.h5"), 10));
  EXPECT_FALSE(growth_is_due(config_behind_growth(config, checkpoint(10, {kFirst}), "c.h5"), 10));
  EXPECT_EQ(growth_record(checkpoint(9, {})), "");
  EXPECT_EQ(growth_record(checkpoint(11, {kFirst})), "");
  EXPECT_NE(growth_record(checkpoint(10, {kFirst})), "");
}

TEST(RunGrowth, AListThatContradictsTheCheckpointIsRefused) {
  EXPECT_NE(refusal(growing(), checkpoint(15, {})).find("it has not grown in a run"),
            std::string::npos);
  EXPECT_NE(refusal(growing(), checkpoint(25, {kFirst})).find("it grew at step 10"),
            std::string::npos);
  Config other = growing();
  other.train.growth[0].options.split = GrowthSplit::even;
  EXPECT_NE(refusal(other, checkpoint(15, {kFirst})).find("split noise, the list says even"),
            std::string::npos);
  // An entry to come whose rate would fall before it has risen.
  other = growing();
  other.train.growth[1].schedule.warmup_steps = 40;
  EXPECT_NE(refusal(other, CheckpointInfo()).find("a smaller --warmup-steps"), std::string::npos);
}

}  // namespace
}  // namespace amur
