// Run folders: names, pruning, cutting back, locks, and what a start finds after a crash.
#include "src/train/checkpoint/run_folder.h"

#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <fstream>

#include "tests/unit/checkpoint/fixture.h"

namespace amur {
namespace {

namespace fs = std::filesystem;

std::string text_of(const std::string& path) {
  const std::vector<char> bytes = test::bytes_of_file(path);
  return {bytes.begin(), bytes.end()};
}

void write_text(const std::string& path, const std::string& text) {
  test::write_file(path, {text.begin(), text.end()});
}

template <class F>
std::string usage_error_of(F&& f) {
  try {
    f();
  } catch (const UsageError& e) {
    return e.what();
  }
  return "";
}

TEST(RunFolder, CheckpointNamesSortByStepAndReadBack) {
  EXPECT_EQ(checkpoint_name(1000), "step-00001000.h5");
  for (int64_t step : {int64_t{0}, int64_t{7}, int64_t{99999999}, int64_t{123456789012}})
    EXPECT_EQ(step_of_checkpoint(checkpoint_name(step)), step);
  for (const char* name : {"latest", "step-00001000.h5.tmp", "step-.h5", "step-1x.h5", "step--1.h5",
                           "x-00001000.h5", "step-99999999999999999999.h5"})
    EXPECT_EQ(step_of_checkpoint(name), std::nullopt) << name;
}

TEST(RunFolder, PruningKeepsTheNewestAndTheBest) {
  using Steps = std::vector<int64_t>;
  EXPECT_EQ(steps_to_prune({10, 20, 30, 40}, 40, 2, std::nullopt), (Steps{20, 10}));
  EXPECT_EQ(steps_to_prune({10, 20, 30, 40}, 40, 2, 10), Steps{20});
  EXPECT_EQ(steps_to_prune({10, 20}, 20, 5, std::nullopt), Steps{});
  EXPECT_EQ(steps_to_prune({10, 20}, 20, 0, std::nullopt),
            Steps{10});  // never the one just written
  EXPECT_EQ(steps_to_prune({10, 20, 30, 40}, 20, 1, std::nullopt), Steps{10});
}

TEST(RunFolder, CutsBackToTheStep) {
  const test::ScratchFolder folder;
  const std::string path = folder.file("metrics.jsonl");
  EXPECT_NO_THROW(cut_back_lines(path, 5));
  const std::string first = "{\"step\":1,\"loss\":2.5}\n{\"step\":2,\"loss\":null}\n";
  write_text(path, first + "{\"step\":3,\"loss\":1}\n{\"step\":4,\"lo");
  cut_back_lines(path, 2);
  EXPECT_EQ(text_of(path), first);
  cut_back_lines(path, 9);
  EXPECT_EQ(text_of(path), first);
  // A last line that looks whole but has no end was not finished either: "12" may stand for "128".
  write_text(path, first + "{\"step\":3,\"loss\":12}");
  cut_back_lines(path, 9);
  EXPECT_EQ(text_of(path), first);
}

TEST(FolderLock, RefusesTheSecondNamingTheFirst) {
  const test::ScratchFolder folder;
  const std::string file = folder.file("lock");
  {
    const FolderLock lock(file);
    const std::string text = usage_error_of([&] { FolderLock second(file); });
    EXPECT_NE(text.find(fmt::format("in use by process {} on {}", ::getpid(), this_process().host)),
              std::string::npos)
        << text;
  }
  EXPECT_NO_THROW(FolderLock{file});
}

TEST(FolderLock, TakesOverWhatADeadProcessLeft) {
  const test::ScratchFolder folder;
  const std::string file = folder.file("lock");
  LockOwner dead = this_process();
  dead.process = 1;  // lives, but does not hold the kernel's lock
  write_text(file, to_line(dead));
  EXPECT_NO_THROW(FolderLock{file});
  // Another host cannot be asked, unless it was the same job before it was started again.
  dead.host = "elsewhere";
  write_text(file, to_line(dead));
  const std::string text = usage_error_of([&] { FolderLock lock(file); });
  EXPECT_NE(text.find("process 1 on elsewhere"), std::string::npos) << text;
  EXPECT_NE(text.find("remove '" + file + "'"), std::string::npos) << text;

  ASSERT_EQ(::setenv("SLURM_JOB_ID", "4711", 1), 0);
  dead.job = "slurm 4711";
  write_text(file, to_line(dead));
  EXPECT_NE(usage_error_of([&] { FolderLock lock(file); }), "");
  ASSERT_EQ(::setenv("SLURM_RESTART_COUNT", "1", 1), 0);
  EXPECT_EQ(usage_error_of([&] { FolderLock lock(file); }), "");
  ::unsetenv("SLURM_RESTART_COUNT");
  ::unsetenv("SLURM_JOB_ID");
}

TEST(FolderLock, EndsWithAKilledProcess) {
  const test::ScratchFolder folder;
  const std::string file = folder.file("lock");
  int ready[2];
  ASSERT_EQ(::pipe(ready), 0);
  const pid_t child = ::fork();
  if (child == 0) {
    const FolderLock lock(file);
    if (::write(ready[1], "x", 1) == 1) ::pause();
    ::_exit(1);
  }
  char byte = 0;
  ASSERT_EQ(::read(ready[0], &byte, 1), 1);
  EXPECT_NE(usage_error_of([&] { FolderLock lock(file); }).find(fmt::format("process {}", child)),
            std::string::npos);
  ASSERT_EQ(::kill(child, SIGKILL), 0);
  ASSERT_EQ(::waitpid(child, nullptr, 0), child);
  EXPECT_EQ(usage_error_of([&] { FolderLock lock(file); }), "");
}

TEST(LockOwner, LinesReadBack) {
  const LockOwner owner{"node \"7\"", 42, "slurm 1", 3};
  const auto read = parse_lock_owner(to_line(owner));
  ASSERT_TRUE(read);
  EXPECT_EQ(to_line(*read), to_line(owner));
  for (const char* line : {"", "{}", "[1]", "{\"host\": 3}", "garbage"})
    EXPECT_FALSE(parse_lock_owner(line)) << line;
}

}  // namespace
}  // namespace amur
