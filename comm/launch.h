// What the launcher and the machine say before MPI does: pure functions, tested without MPI.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

namespace amur {

// The value of an environment variable, "" if unset. Tests pass their own.
using Environment = std::function<std::string(const char*)>;
std::string process_environment(const char* name);

// What the launcher started, by its own environment.
struct LaunchInfo {
  int tasks = 1;
  int task = 0;          // this process among them
  int local_tasks = 1;   // on this machine, at most
  std::string launcher;  // "srun", "mpirun", "mpiexec (PMI)"; "" for none
};
LaunchInfo read_launch(const Environment& environment);

// Why `library` (MPI_Get_library_version) would not connect these tasks, with what to do; "" if
// nothing speaks against it. Known before MPI is initialised.
std::string launch_problem(const LaunchInfo& launch, const std::string& library,
                           const Environment& environment);
// The same once MPI has said how many ranks there are.
std::string size_problem(const LaunchInfo& launch, const std::string& library, int ranks);

// "Open MPI 4.1.4" out of a library's long version text.
std::string short_library_name(const std::string& library);

// Cores this process may run on.
std::vector<int> affinity_cores();
// Cores worth of time that the container's quota allows (cgroup v1 and v2, the tightest of the
// process's groups), under the file system root `root`; nothing without a quota.
std::optional<double> cpu_quota(const std::string& root = "");

// This rank's fair share of cores: every core is divided among the ranks of the machine that may
// run on it, the quota among all of them; at least 1.
int fair_threads(const std::vector<std::vector<int>>& cores_of_rank, int rank,
                 std::optional<double> quota);

}  // namespace amur
