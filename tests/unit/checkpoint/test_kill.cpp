// A job that writes checkpoints is killed at random instants: what is there afterwards is whole.
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <random>
#include <thread>

#include "src/train/checkpoint/inspect.h"
#include "src/train/checkpoint/run_folder.h"

namespace amur {
namespace {

namespace fs = std::filesystem;
using std::chrono::milliseconds;

pid_t start_job(const std::string& folder) {
  const pid_t pid = ::fork();
  if (pid != 0) return pid;
  ::execl(AMUR_MPIEXEC, AMUR_MPIEXEC, "-n", "2", AMUR_CHECKPOINT_WRITER, folder.c_str(), nullptr);
  ::_exit(127);
}

pid_t pid_of_rank(const std::string& folder, int rank) {
  pid_t pid = 0;
  std::ifstream(folder + "/pid-" + std::to_string(rank)) >> pid;
  return pid;
}

template <class F>
bool within(milliseconds limit, F&& f) {
  const auto end = std::chrono::steady_clock::now() + limit;
  while (!f()) {
    if (std::chrono::steady_clock::now() > end) return false;
    std::this_thread::sleep_for(milliseconds(2));
  }
  return true;
}

bool gone(pid_t pid) {
  return ::kill(pid, 0) != 0;
}

TEST(Kill, TheNewestCompleteCheckpointIsAlwaysWhole) {
  const std::string folder =
      (fs::temp_directory_path() / fmt::format("amur-kill-test-{}", ::getpid())).string();
  const std::string checkpoints = folder + "/checkpoints";
  std::mt19937 random(12345);
  for (int round = 0; round < 8; ++round) {
    for (int rank : {0, 1}) fs::remove(fmt::format("{}/pid-{}", folder, rank));
    fs::remove(checkpoints + "/latest");
    const pid_t job = start_job(folder);
    ASSERT_GT(job, 0);
    ASSERT_TRUE(within(milliseconds(20000), [&] {
      return pid_of_rank(folder, 1) > 0 && fs::exists(checkpoints + "/latest");
    }));
    std::this_thread::sleep_for(std::chrono::microseconds(random() % 100000));
    const pid_t ranks[] = {pid_of_rank(folder, 0), pid_of_rank(folder, 1)};
    if (round % 4 == 3) {  // all at once, the launcher too
      ::kill(job, SIGKILL);
      for (pid_t rank : ranks) ::kill(rank, SIGKILL);
    } else {
      ::kill(ranks[round % 2], SIGKILL);
    }
    int status = 0;
    ASSERT_TRUE(
        within(milliseconds(20000), [&] { return ::waitpid(job, &status, WNOHANG) == job; }));
    EXPECT_FALSE(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    ASSERT_TRUE(within(milliseconds(20000), [&] { return gone(ranks[0]) && gone(ranks[1]); }));

    const auto newest = Checkpoint::newest_complete(checkpoints);
    ASSERT_TRUE(newest);
    const CheckpointReport report = inspect_checkpoint({*newest, true, true});
    EXPECT_FALSE(report.damaged());
    EXPECT_EQ(report.parameters, 3 * 512 * 512);
    EXPECT_EQ(checkpoint_name(report.info.step), fs::path(*newest).filename());
    // Under a final name there is never a file that was not written to its end.
    for (const auto& entry : fs::directory_iterator(checkpoints)) {
      if (step_of_checkpoint(entry.path().filename().string())) {
        EXPECT_FALSE(inspect_checkpoint({entry.path().string(), false, true}).damaged());
      }
    }
  }
  fs::remove_all(folder);
}

}  // namespace
}  // namespace amur
