#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "src/app/command_line.h"
#include "src/core/error.h"

namespace amur {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

struct Line {
  CommandLine line{"train", "Trains."};
  RunOptions options;
  std::string config;
  int64_t samples = 5;
  Line() {
    line.argument("CONFIG", config, "the configuration");
    options.declare_set(line);
    options.declare_run(line);
    options.declare_device(line);
    options.declare_json(line);
    line.option("samples", samples, "N", "how many");
  }
  std::string problem(const std::vector<std::string>& args) {
    try {
      line.parse(args);
    } catch (const UsageError& e) {
      return e.what();
    }
    return "";
  }
};

TEST(CommandLine, ReadsOptionsAndArguments) {
  Line l;
  ASSERT_TRUE(l.line.parse({"--set", "train.steps=1", "x.yaml", "--json", "--set=loss.bias=-3",
                            "--device", "cpu", "--samples", "7", "--run-dir", "-"}));
  EXPECT_EQ(l.config, "x.yaml");
  EXPECT_THAT(l.options.overrides, ElementsAre("train.steps=1", "loss.bias=-3"));
  EXPECT_TRUE(l.options.json);
  EXPECT_EQ(l.options.device, "cpu");
  EXPECT_EQ(l.options.comm, "auto");
  EXPECT_EQ(l.options.run_dir, "-");
  EXPECT_EQ(l.options.resume, "auto");
  EXPECT_EQ(l.samples, 7);
}

TEST(CommandLine, KeepsDefaults) {
  Line l;
  ASSERT_TRUE(l.line.parse({"x.yaml"}));
  EXPECT_EQ(l.samples, 5);
  EXPECT_FALSE(l.options.json);
  EXPECT_TRUE(l.options.overrides.empty());
}

TEST(CommandLine, NamesWhatItDoesNotKnow) {
  EXPECT_THAT(Line().problem({"x.yaml", "--rundir", "a"}),
              HasSubstr("unknown option --rundir (did you mean --run-dir?)"));
  EXPECT_THAT(Line().problem({"x.yaml", "--run", "a"}), HasSubstr("unknown option --run"));
  EXPECT_THAT(Line().problem({"x.yaml", "y.yaml"}), HasSubstr("'y.yaml' is one argument too many"));
  EXPECT_THAT(Line().problem({}), HasSubstr("CONFIG is missing"));
  EXPECT_THAT(Line().problem({"x.yaml", "--samples", "many"}), HasSubstr("samples"));
  EXPECT_THAT(Line().problem({"x.yaml", "--samples"}), HasSubstr("samples"));
  EXPECT_THAT(Line().problem({"x.yaml", "--device", "tpu"}),
              HasSubstr("--device is 'tpu', but must be one of auto, cpu, cuda"));
  EXPECT_EQ(Line().problem({"x.yaml"}), "");
}

TEST(CommandLine, HelpComesFirst) {
  Line l;
  EXPECT_FALSE(l.line.parse({"--nonsense", "--help"}));
  EXPECT_THAT(l.line.help(), HasSubstr("Usage: amur train CONFIG [options]"));
  EXPECT_THAT(l.line.help(), HasSubstr("--run-dir DIR"));
}

TEST(CommandLine, RefusesAbsentDevices) {
  RunOptions options;
  EXPECT_EQ(options.cpu_backend(), CommBackend::automatic);
  EXPECT_EQ(options.gpus(), 0);
  options.device = "cuda";
  EXPECT_THROW(options.cpu_backend(), UsageError);
  EXPECT_THROW(options.gpus(), UsageError);
  options.device = "cpu";
  EXPECT_EQ(options.gpus(), 0);
  options.comm = "nccl";
  EXPECT_THROW(options.cpu_backend(), UsageError);
}

}  // namespace
}  // namespace amur
