// The program `amur` from outside: what it prints where, and its exit codes.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <stdlib.h>
#include <sys/wait.h>

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>

#include "src/core/version.h"

namespace amur {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using ::testing::StartsWith;

struct Outcome {
  int code = -1;
  std::string out, err;
};

class Program : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = std::filesystem::temp_directory_path() / "amur_program_XXXXXX";
    ASSERT_NE(mkdtemp(pattern.data()), nullptr);
    folder_ = pattern;
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  std::string read(const std::string& name) const {
    std::ostringstream text;
    text << std::ifstream(folder_ / name).rdbuf();
    return text.str();
  }
  Outcome shell(const std::string& command) const {
    std::string line =
        "cd " + folder_.string() + " && timeout -k 5 50 " + command + " > out 2> err";
    int status = std::system(line.c_str());
    return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, read("out"), read("err")};
  }
  Outcome amur(const std::string& args) const { return shell(AMUR_PROGRAM " " + args); }
  Outcome amur_on_two_ranks(const std::string& args) const {
    return shell(AMUR_MPIEXEC " -n 2 " AMUR_PROGRAM " " + args);
  }

  std::filesystem::path folder_;
};

size_t count(const std::string& text, const std::string& part) {
  size_t n = 0;
  for (size_t at = 0; (at = text.find(part, at)) != std::string::npos; at += part.size()) ++n;
  return n;
}

TEST_F(Program, NamesItselfAndItsCommands) {
  Outcome version = amur("--version");
  EXPECT_EQ(version.code, 0);
  EXPECT_EQ(version.out, std::string("amur ") + kVersion + "\n");
  EXPECT_THAT(version.err, IsEmpty());

  Outcome help = amur("--help");
  EXPECT_EQ(help.code, 0);
  EXPECT_THAT(help.out, HasSubstr("doctor"));
  Outcome nothing = amur("");
  EXPECT_EQ(nothing.code, 2);
  EXPECT_EQ(nothing.err, help.out);
  EXPECT_THAT(nothing.out, IsEmpty());
}

TEST_F(Program, PrintsTheReference) {
  Outcome reference = amur("help configuration");
  EXPECT_EQ(reference.code, 0);
  EXPECT_THAT(reference.out, StartsWith("# Configuration\n"));
}

TEST_F(Program, EveryCommandHasHelp) {
  Outcome usage = amur("--help");
  std::istringstream lines(usage.out.substr(usage.out.find("Commands\n")));
  std::string line, name;
  std::getline(lines, line);
  int commands = 0;
  while (std::getline(lines, line) && !line.empty()) {
    std::istringstream(line) >> name;
    Outcome help = amur(name + " --help");
    EXPECT_EQ(help.code, 0) << name;
    EXPECT_THAT(help.out, HasSubstr("Usage: amur " + name)) << help.err;
    EXPECT_THAT(help.out, HasSubstr("--json"));
    ++commands;
  }
  EXPECT_GE(commands, 5);
}

TEST_F(Program, SaysOnceWhatIsWrong) {
  Outcome run = amur_on_two_ranks("trian x.yaml");
  EXPECT_EQ(run.code, 2);
  EXPECT_THAT(run.err, HasSubstr("unknown command 'trian' (did you mean train?)"));
  EXPECT_EQ(count(run.err, "unknown command"), 1u) << run.err;
  EXPECT_THAT(run.out, IsEmpty());

  run = amur("doctor --jsn");
  EXPECT_EQ(run.code, 2);
  EXPECT_THAT(run.err, HasSubstr("unknown option --jsn (did you mean --json?)"));
}

TEST_F(Program, ReportsAConfigurationOnce) {
  std::ofstream(folder_ / "x.yaml") << "train:\n  bach_size: 8\n  steps: many\n";
  Outcome run = amur_on_two_ranks("train x.yaml");
  EXPECT_EQ(run.code, 2);
  EXPECT_EQ(count(run.err,
                  "x.yaml:2: train.bach_size: unknown key (did you mean "
                  "train.batch_size?)"),
            1u)
      << run.err;
  EXPECT_EQ(count(run.err, "x.yaml:3: train.steps: expected a whole number"), 1u) << run.err;
  EXPECT_FALSE(std::filesystem::exists(folder_ / "runs"));
}

TEST_F(Program, DoctorGivesOneDocument) {
  Outcome run = amur_on_two_ranks("doctor --json");
  EXPECT_EQ(run.code, 0) << run.err;
  auto report = nlohmann::json::parse(run.out, nullptr, false);
  ASSERT_TRUE(report.is_object()) << run.out;
  EXPECT_EQ(report["amur"], kVersion);
  EXPECT_EQ(report["ranks"], 2);
  EXPECT_THAT(report["hdf5"].get<std::string>(), HasSubstr("parallel"));
}

// A copy of the program, with what lies beside it for a GPU back end. A pretended driver is found
// first, so that this does not depend on the machine.
class ProgramWithGpu : public Program {
 protected:
  void SetUp() override {
    Program::SetUp();
    std::filesystem::copy_file(AMUR_PROGRAM, folder_ / "amur");
    std::filesystem::copy_file(AMUR_FAKE_DRIVER, folder_ / "libcuda.so.1");
  }
  void place(const char* back_end) const {
    std::filesystem::copy_file(back_end, folder_ / "libamur_cuda.so",
                               std::filesystem::copy_options::overwrite_existing);
  }
  Outcome here(const std::string& args) const {
    return shell("env LD_LIBRARY_PATH=" + folder_.string() + " ./amur " + args);
  }
  // What each command that asks for a device says; returns the "gpu" of the doctor's report.
  nlohmann::json expect_cpu_because(const std::string& why) const {
    Outcome run = here("train x.yaml --device cuda");
    EXPECT_EQ(run.code, 2);
    EXPECT_THAT(run.err, HasSubstr("--device cuda: "));
    EXPECT_THAT(run.err, HasSubstr(why));
    EXPECT_THAT(run.err, HasSubstr("use --device cpu"));
    return expect_auto_takes_cpu(why);
  }
  nlohmann::json expect_auto_takes_cpu(const std::string& why) const {
    Outcome run = here("train x.yaml");  // which goes on, to the file that is not there
    EXPECT_THAT(run.err, HasSubstr("computing on the CPU: "));
    EXPECT_THAT(run.err, HasSubstr(why));
    EXPECT_THAT(run.err, HasSubstr("x.yaml"));
    run = here("train x.yaml --device cpu");
    EXPECT_THAT(run.err, Not(HasSubstr("computing on")));
    run = here("doctor");
    EXPECT_EQ(run.code, 0);
    EXPECT_THAT(run.out, HasSubstr("\ngpu back end  "));
    run = here("doctor --json");
    EXPECT_EQ(run.code, 0) << run.err;
    return nlohmann::json::parse(run.out)["gpu"];
  }
};

TEST_F(ProgramWithGpu, AbsentBackEnd) {
  const auto gpu = expect_cpu_because("this build has no GPU back end");
  EXPECT_EQ(gpu["usable"], false);
  EXPECT_THAT(gpu["remedy"].get<std::string>(), HasSubstr("CUDA toolkit"));
}

TEST_F(ProgramWithGpu, BackEndOfAnotherVersion) {
  place(AMUR_OTHER_GPU);
  const auto gpu = expect_cpu_because("was built for amur 0.0.0 (another)");
  EXPECT_EQ(gpu["usable"], false);
  EXPECT_EQ(gpu["libraries"], "");
}

TEST_F(ProgramWithGpu, BrokenBackEnd) {
  std::ofstream(folder_ / "libamur_cuda.so") << "not a library";
  EXPECT_EQ(expect_cpu_because("the GPU back end cannot be loaded")["usable"], false);
}

TEST_F(ProgramWithGpu, UsableGpuIsTakenWhereItIsAskedFor) {
  place(AMUR_FAKE_GPU);
  const auto gpu = expect_auto_takes_cpu("is taken only by --device cuda");
  EXPECT_EQ(gpu["usable"], true);
  EXPECT_EQ(gpu["libraries"], "a pretended GPU");
  EXPECT_EQ(gpu["gpus"][0], "Pretender (sm_90, 1.0 GiB)");
  EXPECT_THAT(here("doctor").out, HasSubstr("cpu, cuda:0\n"));
  // So is NCCL, by a library of its own.
  EXPECT_THAT(here("doctor").out, HasSubstr("\nnccl                 none: this build has no NCCL"));
  std::filesystem::copy_file(AMUR_NCCL_STAND_IN, folder_ / "libamur_nccl.so");
  EXPECT_THAT(here("doctor").out, HasSubstr("\nnccl                 NCCL 2.28.9\n"));
  EXPECT_EQ(nlohmann::json::parse(here("doctor --json").out)["nccl"]["usable"], true);
  // Commands go on, to the file that is not there; those of files alone refuse.
  for (const char* command :
       {"train x.yaml", "verify-grad x.yaml", "eval x.h5", "embed x.h5 --input - --output -"})
    EXPECT_THAT(here(std::string(command) + " --device cuda").err,
                AllOf(HasSubstr("computing on Pretender"), HasSubstr("x.")))
        << command;
  const Outcome run = here("compare x.h5 y.h5 --device cuda");
  EXPECT_EQ(run.code, 2);
  EXPECT_THAT(run.err, HasSubstr("this command computes on the CPU alone"));
  EXPECT_THAT(here("compare x.h5 y.h5 --comm nccl").err,
              HasSubstr("this command has no tensors on a GPU"));
}

TEST_F(Program, FullDiskIsAnError) {
  Outcome run = shell("sh -c '" AMUR_PROGRAM " help configuration > /dev/full'");
  EXPECT_EQ(run.code, 4);
  EXPECT_THAT(run.err, HasSubstr("cannot write to standard output"));
  EXPECT_THAT(run.err, Not(HasSubstr("terminate")));
}

}  // namespace
}  // namespace amur
