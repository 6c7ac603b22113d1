// What is decided without MPI: groups of the grid, launcher, threads, quota, who lags.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <map>

#include "comm/launch.h"
#include "comm/process_grid.h"
#include "comm/trace.h"
#include "comm/watchdog.h"

namespace amur {
namespace {

using Groups = std::vector<std::vector<int>>;

TEST(ProcessGrid, TensorParallelRanksAreNeighbours) {
  EXPECT_EQ(tp_groups({2, 3}), (Groups{{0, 1, 2}, {3, 4, 5}}));
  EXPECT_EQ(dp_groups({2, 3}), (Groups{{0, 3}, {1, 4}, {2, 5}}));
  EXPECT_EQ(dp_groups({4, 1}), (Groups{{0, 1, 2, 3}}));
  EXPECT_EQ(tp_groups({4, 1}), (Groups{{0}, {1}, {2}, {3}}));
}

TEST(ProcessGrid, TensorParallelGroupsStayOnAMachine) {
  using Members = std::vector<int>;
  const std::vector<int64_t> two_and_two = {0, 0, 2, 2}, in_turn = {0, 1, 0, 1},
                             three_and_one = {0, 0, 0, 3};
  EXPECT_EQ(divided_tp_group({2, 2}, two_and_two), Members());
  EXPECT_EQ(divided_tp_group({4, 1}, in_turn), Members());
  EXPECT_EQ(divided_tp_group({2, 2}, in_turn), (Members{0, 1}));
  EXPECT_EQ(divided_tp_group({2, 2}, three_and_one), (Members{2, 3}));
  EXPECT_EQ(divided_tp_group({1, 4}, two_and_two), (Members{0, 1, 2, 3}));
}

Environment environment_of(std::map<std::string, std::string> values) {
  return [values = std::move(values)](const char* name) {
    const auto at = values.find(name);
    return at == values.end() ? std::string() : at->second;
  };
}

const std::string kOpenMpi =
    "Open MPI v4.1.4, package: Debian OpenMPI, ident: 4.1.4, repo rev: v4.1.4, May 26, 2022";

TEST(Launch, SrunWithoutPmixIsRefused) {
  std::map<std::string, std::string> values{{"SLURM_STEP_ID", "0"},
                                            {"SLURM_STEP_NUM_TASKS", "4"},
                                            {"SLURM_STEP_TASKS_PER_NODE", "1(x2),2"},
                                            {"SLURM_PROCID", "3"}};
  const LaunchInfo launch = read_launch(environment_of(values));
  EXPECT_EQ(launch.tasks, 4);
  EXPECT_EQ(launch.task, 3);
  EXPECT_EQ(launch.local_tasks, 2);
  const std::string problem = launch_problem(launch, kOpenMpi, environment_of(values));
  EXPECT_NE(problem.find("srun --mpi=pmix"), std::string::npos) << problem;
  EXPECT_NE(problem.find("Open MPI 4.1.4"), std::string::npos) << problem;
  values["PMIX_RANK"] = "3";
  EXPECT_EQ(launch_problem(launch, kOpenMpi, environment_of(values)), "");
}

TEST(Launch, OneTaskAndBatchScriptsRunAlone) {
  // A batch script has the job's task count, but is no step.
  const auto batch = environment_of({{"SLURM_NTASKS", "4"}, {"SLURM_PROCID", "0"}});
  EXPECT_EQ(read_launch(batch).tasks, 1);
  EXPECT_EQ(launch_problem(read_launch(batch), kOpenMpi, batch), "");
  EXPECT_EQ(read_launch(environment_of({})).launcher, "");
}

TEST(Launch, AnotherMpisLauncherIsNoticed) {
  // Ranks of another MPI's mpiexec: nothing that Open MPI knows.
  const auto hydra = environment_of({{"PMI_SIZE", "4"}, {"PMI_RANK", "1"}});
  EXPECT_NE(launch_problem(read_launch(hydra), kOpenMpi, hydra), "");
  // Open MPI's mpirun with a program of another MPI: seen once that is initialised.
  const auto mpirun = environment_of({{"OMPI_COMM_WORLD_SIZE", "4"},
                                      {"OMPI_COMM_WORLD_RANK", "2"},
                                      {"SLURM_STEP_ID", "0"},
                                      {"SLURM_STEP_NUM_TASKS", "9"}});
  const LaunchInfo launch = read_launch(mpirun);
  EXPECT_EQ(launch.tasks, 4);
  EXPECT_NE(size_problem(launch, "MPICH Version: 4.0", 1), "");
  EXPECT_EQ(size_problem(launch, "MPICH Version: 4.0", 4), "");
}

TEST(Threads, CoresAreSharedByTheRanksThatMayUseThem) {
  const std::vector<int> four{0, 1, 2, 3};
  EXPECT_EQ(fair_threads({four}, 0, {}), 4);
  EXPECT_EQ(fair_threads({four, four}, 1, {}), 2);
  EXPECT_EQ(fair_threads({four, four, four}, 0, {}), 1);
  EXPECT_EQ(fair_threads({four, four, four, four, four}, 0, {}), 1);
  EXPECT_EQ(fair_threads({{0, 1}, {2, 3}}, 0, {}), 2);  // bound: no sharing
  EXPECT_EQ(fair_threads({four}, 0, 2.5), 2);
  EXPECT_EQ(fair_threads({four, four}, 0, 3.0), 1);
  EXPECT_EQ(fair_threads({four}, 0, 0.5), 1);
  EXPECT_FALSE(affinity_cores().empty());
}

class Quota : public ::testing::Test {
 protected:
  Quota()
      : root(std::filesystem::temp_directory_path() / ("amur-quota-" + std::to_string(getpid()))) {}
  ~Quota() override { std::filesystem::remove_all(root); }
  void file(const std::string& path, const std::string& text) {
    std::filesystem::create_directories((root / path).parent_path());
    std::ofstream(root / path) << text;
  }
  std::filesystem::path root;
};

TEST_F(Quota, TightestGroupOfVersionTwo) {
  file("proc/self/mountinfo",
       "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw\n");
  file("proc/self/cgroup", "0::/job/step\n");
  EXPECT_EQ(cpu_quota(root), std::nullopt);
  file("sys/fs/cgroup/job/step/cpu.max", "max 100000\n");
  EXPECT_EQ(cpu_quota(root), std::nullopt);
  file("sys/fs/cgroup/job/cpu.max", "250000 100000\n");
  EXPECT_EQ(cpu_quota(root), 2.5);
  file("sys/fs/cgroup/job/step/cpu.max", "150000 100000\n");
  EXPECT_EQ(cpu_quota(root), 1.5);
}

TEST_F(Quota, VersionOneInsideAContainer) {
  file("proc/self/mountinfo",
       "40 30 0:33 /docker/abc /sys/fs/cgroup/cpu,cpuacct ro - cgroup cgroup rw,cpu,cpuacct\n"
       "41 30 0:34 /docker/abc /sys/fs/cgroup/cpuset ro - cgroup cgroup rw,cpuset\n");
  file("proc/self/cgroup", "5:cpuset:/docker/abc\n4:cpu,cpuacct:/docker/abc\n");
  file("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "-1\n");
  file("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000\n");
  EXPECT_EQ(cpu_quota(root), std::nullopt);
  file("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "300000\n");
  EXPECT_EQ(cpu_quota(root), 3.0);
}

Heartbeat beat(uint64_t collectives, bool waiting, uint64_t sequence, const std::string& last) {
  Heartbeat h;
  h.collectives = collectives;
  h.in_collective = waiting;
  h.sequence = sequence;
  std::snprintf(h.group, sizeof h.group, "world");
  std::snprintf(h.last, sizeof h.last, "%s", last.c_str());
  return h;
}

TEST(FindLagging, NamesTheRankThatHoldsUpTheOthers) {
  using Ranks = std::vector<int>;
  // One computes, the others wait.
  EXPECT_EQ(
      find_lagging({beat(5, true, 5, "a"), beat(4, false, 4, "b"), beat(5, true, 5, "a")}).ranks,
      Ranks{1});
  // One is done.
  auto finished = beat(9, false, 9, "z");
  finished.finished = 1;
  EXPECT_EQ(find_lagging({beat(5, true, 5, "a"), beat(5, true, 5, "a"), finished}).ranks, Ranks{2});
  // All wait, one in an earlier call.
  EXPECT_EQ(
      find_lagging({beat(5, true, 5, "a"), beat(4, true, 4, "b"), beat(5, true, 5, "a")}).ranks,
      Ranks{1});
  // All wait at the same number, one in another call: the smaller side stands out, also as rank 0.
  EXPECT_EQ(
      find_lagging({beat(5, true, 5, "b"), beat(5, true, 5, "a"), beat(5, true, 5, "a")}).ranks,
      Ranks{0});
  EXPECT_EQ(
      find_lagging({beat(5, true, 5, "a"), beat(5, true, 5, "a"), beat(5, true, 5, "b")}).ranks,
      Ranks{2});
  // No majority: both are named.
  EXPECT_EQ(find_lagging({beat(5, true, 5, "a"), beat(5, true, 5, "b")}).ranks, (Ranks{0, 1}));
  EXPECT_TRUE(find_lagging({beat(5, true, 5, "a"), beat(5, true, 5, "a")}).ranks.empty());
  // Nobody waits.
  EXPECT_EQ(find_lagging({beat(5, false, 5, "a"), beat(3, false, 3, "a")}).ranks, Ranks{1});
  EXPECT_TRUE(find_lagging({beat(5, false, 5, "a"), beat(5, false, 5, "a")}).ranks.empty());
  EXPECT_TRUE(find_lagging({beat(5, false, 5, "a")}).ranks.empty());
}

TEST(Trace, KeepsTheNewestCalls) {
  Trace trace;
  EXPECT_EQ(trace.last(5).size(), 0u);
  for (uint64_t i = 1; i <= 100; ++i) {
    CollectiveRecord r;
    r.group = "dp";
    r.op = "barrier";
    r.sequence = i;
    r.site = CallSite::here();
    trace.enter(r);
    EXPECT_TRUE(trace.position().in_collective);
    if (i < 100) trace.leave();
  }
  const auto last = trace.last(1000);
  ASSERT_EQ(last.size(), Trace::kKept);
  EXPECT_EQ(last.front().sequence, 101 - Trace::kKept);
  EXPECT_EQ(last.back().sequence, 100u);
  EXPECT_TRUE(last.front().done);
  EXPECT_FALSE(last.back().done);
  EXPECT_NE(trace.last_text(2).find("dp.barrier #100, at tests/unit/comm/test_launch.cpp:"),
            std::string::npos)
      << trace.last_text(2);
  EXPECT_NO_THROW(trace.throw_if_interrupted());
  trace.interrupt("stop here");
  EXPECT_THROW(trace.throw_if_interrupted(), CommError);
}

}  // namespace
}  // namespace amur
