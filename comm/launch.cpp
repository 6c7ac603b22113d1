#include "comm/launch.h"

#include <fmt/format.h>
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <sstream>

namespace amur {
namespace {

int number(const std::string& text, int otherwise) {
  char* end = nullptr;
  const long value = std::strtol(text.c_str(), &end, 10);
  return end != text.c_str() && value >= 0 && value < 100'000'000 ? static_cast<int>(value)
                                                                  : otherwise;
}

// The largest entry of Slurm's "2(x3),1": tasks per node.
int largest_of_list(const std::string& text) {
  int largest = 0;
  std::stringstream list(text);
  for (std::string entry; std::getline(list, entry, ',');)
    largest = std::max(largest, number(entry, 0));
  return largest;
}

std::string read_line(const std::string& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

bool has_word(const std::string& list, const std::string& word) {
  std::stringstream words(list);
  for (std::string w; std::getline(words, w, ',');)
    if (w == word) return true;
  return false;
}

// A mounted cgroup tree that knows the cpu controller.
struct CgroupMount {
  std::string root;   // the part of the tree that is mounted
  std::string point;  // where
  bool v2 = false;
};

std::vector<CgroupMount> cgroup_mounts(const std::string& root) {
  std::vector<CgroupMount> mounts;
  std::ifstream file(root + "/proc/self/mountinfo");
  for (std::string line; std::getline(file, line);) {
    // id parent major:minor root point options [fields] - type source super-options
    std::stringstream fields(line);
    std::string skip, type, source, options;
    CgroupMount m;
    fields >> skip >> skip >> skip >> m.root >> m.point;
    while (fields >> skip && skip != "-") {
    }
    fields >> type >> source >> options;
    m.v2 = type == "cgroup2";
    if (m.v2 || (type == "cgroup" && has_word(options, "cpu"))) mounts.push_back(m);
  }
  return mounts;
}

std::optional<double> quota_of(const std::string& folder, bool v2) {
  double quota = 0, period = 0;
  if (v2) {
    std::stringstream words(read_line(folder + "/cpu.max"));  // "200000 100000" or "max 100000"
    if (!(words >> quota >> period)) return {};
  } else {
    std::stringstream(read_line(folder + "/cpu.cfs_quota_us")) >> quota;  // -1: none
    std::stringstream(read_line(folder + "/cpu.cfs_period_us")) >> period;
  }
  if (quota <= 0 || period <= 0) return {};
  return quota / period;
}

}  // namespace

std::string process_environment(const char* name) {
  const char* value = std::getenv(name);
  return value ? value : "";
}

LaunchInfo read_launch(const Environment& environment) {
  LaunchInfo info;
  // The innermost launcher first: mpirun inside a Slurm job sees Slurm's variables too.
  if (const std::string n = environment("OMPI_COMM_WORLD_SIZE"); !n.empty()) {
    info.launcher = "mpirun";
    info.tasks = number(n, 1);
    info.task = number(environment("OMPI_COMM_WORLD_RANK"), 0);
    info.local_tasks = number(environment("OMPI_COMM_WORLD_LOCAL_SIZE"), 1);
  } else if (const int tasks = number(environment("SLURM_STEP_NUM_TASKS"), 0);
             tasks > 1 && !environment("SLURM_STEP_ID").empty()) {
    // A batch script has SLURM_NTASKS but no step: a program started there alone is alone.
    info.launcher = "srun";
    info.tasks = tasks;
    info.task = number(environment("SLURM_PROCID"), 0);
    info.local_tasks = std::max(1, largest_of_list(environment("SLURM_STEP_TASKS_PER_NODE")));
  } else if (const std::string p = environment("PMI_SIZE"); !p.empty()) {
    info.launcher = "mpiexec (PMI)";
    info.tasks = number(p, 1);
    info.task = number(environment("PMI_RANK"), 0);
    info.local_tasks = number(environment("MPI_LOCALNRANKS"), 1);
  }
  return info;
}

std::string short_library_name(const std::string& library) {
  const std::string first = library.substr(0, library.find_first_of(",\n"));
  if (first.starts_with("Open MPI v")) return "Open MPI " + first.substr(10);
  return first;
}

std::string launch_problem(const LaunchInfo& launch, const std::string& library,
                           const Environment& environment) {
  if (launch.tasks < 2 || !library.starts_with("Open MPI")) return "";
  if (!environment("PMIX_RANK").empty() || !environment("OMPI_COMM_WORLD_SIZE").empty()) return "";
  return fmt::format(
      "{} started {} tasks, but without the PMIx interface that {} needs to connect them: start "
      "with `srun --mpi=pmix ...` (`srun --mpi=list` shows what this Slurm offers) or with Open "
      "MPI's own `mpirun -n {} ...`",
      launch.launcher, launch.tasks, short_library_name(library), launch.tasks);
}

std::string size_problem(const LaunchInfo& launch, const std::string& library, int ranks) {
  if (launch.tasks == ranks || ranks > 1 || launch.tasks < 2) return "";
  return fmt::format(
      "{} started {} tasks, but {} sees {}: each would be a run of its own. The launcher belongs "
      "to "
      "another MPI than this program's: use the `mpirun` of {}, or `srun --mpi=pmix ...`",
      launch.launcher, launch.tasks, short_library_name(library), ranks,
      short_library_name(library));
}

std::vector<int> affinity_cores() {
  std::vector<int> cores;
  for (int room = 1024; room <= (1 << 20); room *= 4) {
    cpu_set_t* set = CPU_ALLOC(room);
    const size_t bytes = CPU_ALLOC_SIZE(room);
    const bool ok = set && sched_getaffinity(0, bytes, set) == 0;
    for (int c = 0; ok && c < room; ++c)
      if (CPU_ISSET_S(c, bytes, set)) cores.push_back(c);
    CPU_FREE(set);
    if (ok) return cores;
  }
  for (int c = 0; c < std::max(1L, sysconf(_SC_NPROCESSORS_ONLN)); ++c) cores.push_back(c);
  return cores;
}

std::optional<double> cpu_quota(const std::string& root) {
  std::optional<double> tightest;
  const auto mounts = cgroup_mounts(root);
  std::ifstream groups(root + "/proc/self/cgroup");
  for (std::string line; std::getline(groups, line);) {  // "4:cpu,cpuacct:/path" or "0::/path"
    const size_t one = line.find(':'), two = line.find(':', one + 1);
    if (one == std::string::npos || two == std::string::npos) continue;
    const std::string controllers = line.substr(one + 1, two - one - 1);
    const bool v2 = controllers.empty();
    if (!v2 && !has_word(controllers, "cpu")) continue;
    for (const CgroupMount& m : mounts) {
      if (m.v2 != v2) continue;
      // The path seen from the mount's root; a container that hides it shows its own group there.
      std::string path = line.substr(two + 1);
      if (m.root != "/" && path.starts_with(m.root)) path.erase(0, m.root.size());
      for (;; path.erase(path.rfind('/'))) {
        if (path == "/") path.clear();
        if (const auto quota = quota_of(root + m.point + path, v2))
          tightest = std::min(tightest.value_or(*quota), *quota);
        if (path.rfind('/') == std::string::npos) break;
      }
    }
  }
  return tightest;
}

int fair_threads(const std::vector<std::vector<int>>& cores_of_rank, int rank,
                 std::optional<double> quota) {
  double share = 0;
  for (int core : cores_of_rank[static_cast<size_t>(rank)]) {
    const auto users = std::count_if(
        cores_of_rank.begin(), cores_of_rank.end(), [core](const std::vector<int>& cores) {
          return std::find(cores.begin(), cores.end(), core) != cores.end();
        });
    share += 1.0 / static_cast<double>(users);
  }
  if (quota) share = std::min(share, *quota / static_cast<double>(cores_of_rank.size()));
  return std::max(1, static_cast<int>(share + 1e-6));
}

}  // namespace amur
