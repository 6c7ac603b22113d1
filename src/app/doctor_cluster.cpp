#include "src/app/doctor_cluster.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <thread>

#include "comm/launch.h"
#include "comm/process_grid.h"
#include "src/core/error.h"
#include "src/core/version.h"
#include "src/train/checkpoint/hdf5_file.h"
#include "src/train/stopwatch.h"

namespace amur {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

constexpr int64_t kSmall = 2;             // f32 elements: 8 bytes
constexpr int64_t kMiddle = 16 << 10;     // 64 KiB
constexpr int64_t kLarge = 4 << 20;       // 16 MiB
constexpr double kSecondsForLarge = 0.5;  // of one collective
constexpr double kSkew = 1;               // seconds
constexpr double kPatience = 5;           // seconds until a file must be seen

struct Examination {
  Runtime& runtime;
  ProcessGrid& grid;
  ClusterReport report;
  std::vector<std::string> warnings;

  Communicator& world() { return grid.world(); }
  void line(const std::string& name, const std::string& value) {
    report.text += fmt::format("{:<20} {}\n", name, value);
  }
  void problem(int exit_code, const std::string& what) {
    if (report.problems.empty()) report.exit_code = exit_code;
    report.problems.push_back(what);
  }
};

void examine_hosts(Examination& e) {
  const auto hosts = e.world().gather(e.runtime.host());
  const auto cores = e.world().gather(static_cast<int64_t>(affinity_cores().size()));
  std::map<std::string, int64_t> ranks_of, cores_of;
  for (size_t r = 0; r < hosts.size(); ++r) {
    ++ranks_of[hosts[r]];
    cores_of[hosts[r]] = std::max(cores_of[hosts[r]], cores[r]);
  }
  int64_t least = e.world().size(), most = 0;
  for (const auto& [host, ranks] : ranks_of) {
    e.report.json["hosts"].push_back({{"name", host}, {"ranks", ranks}, {"cores", cores_of[host]}});
    least = std::min(least, ranks);
    most = std::max(most, ranks);
    if (ranks > cores_of[host])
      e.warnings.push_back(fmt::format("{}: {} ranks share {} cores: start fewer ranks there", host,
                                       ranks, cores_of[host]));
  }
  e.line("hosts", e.runtime.hosts_text());
  e.line("threads", e.runtime.threads_text());
  if (least != most)
    e.warnings.push_back(fmt::format(
        "between {} and {} ranks on a host: the fullest host sets the pace", least, most));
  if (static_cast<int>(ranks_of.size()) != e.runtime.nodes())
    e.warnings.push_back(fmt::format("{} host names for {} machines: give each its own name",
                                     ranks_of.size(), e.runtime.nodes()));
  // Ranks see what mpirun was given.
  if (e.runtime.nodes() > 1 && !process_environment("OMPI_COMM_WORLD_SIZE").empty() &&
      process_environment("OMPI_MCA_oob_tcp_keepalive_time").empty())
    e.warnings.emplace_back(
        "mpirun would wait eight minutes for a host that fell silent: `. launch/mpi.sh` before it");
}

void examine_versions(Examination& e) {
  const std::string mine =
      fmt::format("amur {}, {}, {}", kVersion, e.runtime.library_text(), hdf5_version_text());
  const auto hosts = e.world().gather(e.runtime.host());
  const auto versions = e.world().gather(mine);
  std::map<std::string, std::vector<std::string>> hosts_of;
  for (size_t r = 0; r < versions.size(); ++r) {
    auto& list = hosts_of[versions[r]];
    if (std::find(list.begin(), list.end(), hosts[r]) == list.end()) list.push_back(hosts[r]);
  }
  e.report.json["versions"] = mine;
  e.report.json["versions_equal"] = hosts_of.size() == 1;
  e.line("versions", mine);
  if (hosts_of.size() == 1) return;
  std::string text = "different versions: start the same installation everywhere";
  for (const auto& [version, list] : hosts_of)
    text += fmt::format("; {}: {}", fmt::join(list, ", "), version);
  e.problem(kExitComm, text);
}

// Seconds of the fastest of a few, the slowest rank's of each.
template <class Operation>
double fastest(Communicator& group, Operation&& operation) {
  double best = INFINITY;
  operation();
  for (int turn = 0; turn < 3; ++turn) {
    group.barrier();
    Stopwatch watch;
    operation();
    best = std::min(best, group.max(watch.elapsed()));
  }
  return best;
}

double time_all_reduce(Communicator& group, int64_t elements) {
  Tensor data = Tensor::zeros({elements}, DType::f32);
  return fastest(group, [&] {
    group.all_reduce(data, ReduceOp::sum);
    group.synchronize();
  });
}

// `active`: this rank takes part. The result is that of the slowest group, on every rank.
Json examine_group(Examination& e, const std::string& name, Communicator& group, bool active) {
  struct {
    double small = 0, large = 0, gather = 0, scatter = 0;
    int64_t elements = 0, ranks = 0;
  } m;
  if (active && group.size() > 1) {
    m.ranks = group.size();
    // The fastest of many: what others do on these machines lengthens some, never shortens one.
    Tensor data = Tensor::zeros({kSmall}, DType::f32);
    double least = INFINITY;
    for (int i = 0; i < 200; ++i) {
      Stopwatch watch;
      group.all_reduce(data, ReduceOp::sum);
      group.synchronize();
      least = std::min(least, watch.elapsed());
    }
    m.small = group.max(least);
    const double middle = time_all_reduce(group, kMiddle);
    const double fitting = kMiddle * kSecondsForLarge / std::max(middle, 1e-9);
    m.elements = std::clamp(static_cast<int64_t>(fitting), kMiddle, kLarge);
    m.elements = group.min(m.elements) / group.size() * group.size();
    m.large = time_all_reduce(group, m.elements);
    const std::vector<int64_t> counts(static_cast<size_t>(group.size()), m.elements / group.size());
    Tensor part = Tensor::zeros({counts[0]}, DType::f32);
    Tensor full = Tensor::zeros({m.elements}, DType::f32);
    m.gather = fastest(group, [&] {
      group.all_gather(part, full, counts);
      group.synchronize();
    });
    m.scatter = fastest(group, [&] {
      group.reduce_scatter(full, part, counts);
      group.synchronize();
    });
  }
  m.ranks = e.world().max(m.ranks);
  if (m.ranks < 2) return nullptr;
  m.elements = e.world().max(m.elements);
  for (double* seconds : {&m.small, &m.large, &m.gather, &m.scatter})
    *seconds = e.world().max(*seconds);
  const double bytes = 4.0 * static_cast<double>(m.elements);
  e.line(name, fmt::format("{} ranks: {} bytes {:.1f} us; {:.1f} MB in ms: all-reduce {:.1f}, "
                           "all-gather {:.1f}, reduce-scatter {:.1f}",
                           m.ranks, 4 * kSmall, m.small * 1e6, bytes * 1e-6, m.large * 1e3,
                           m.gather * 1e3, m.scatter * 1e3));
  return {{"ranks", m.ranks},
          {"latency_seconds", m.small},
          {"bytes", bytes},
          {"all_reduce_seconds", m.large},
          {"all_gather_seconds", m.gather},
          {"reduce_scatter_seconds", m.scatter}};
}

// The constants of docs/scaling.md, from the sums that training uses: of one number, two messages
// one after the other, and of as much as the collectives above took, in which every link carries
// 2 (n - 1) / n of it each way. `machines`: one rank of each of n, where this rank is one of them.
Json examine_link(Examination& e, Communicator& machines, bool active, int64_t elements) {
  double alpha = 0, seconds = 0;
  if (active) {
    const Stream side = machines.side_stream({.through_nodes = false});
    const auto time_sum = [&](int64_t count, int turns) {
      Tensor values = Tensor::zeros({count}, DType::f32);
      double least = INFINITY;
      for (int turn = 0; turn < turns; ++turn) {
        machines.barrier();
        Stopwatch watch;
        machines.all_reduce(values, ReduceOp::sum, side);
        machines.synchronize(side);
        least = std::min(least, machines.max(watch.elapsed()));
      }
      return least;
    };
    alpha = time_sum(1, 50) / 2;
    seconds = time_sum(elements, 5);
  }
  alpha = e.world().max(alpha);
  seconds = std::max(e.world().max(seconds) - 2 * alpha, 1e-9);
  const double n = e.runtime.nodes();
  const double beta = 2 * (n - 1) / n * 4 * static_cast<double>(elements) / seconds;
  e.line("link", fmt::format("alpha {:.1f} us a message, beta {:.1f} MB/s (docs/scaling.md)",
                             alpha * 1e6, beta * 1e-6));
  return {{"alpha_seconds_per_message", alpha}, {"beta_bytes_per_second", beta}};
}

void examine_network(Examination& e) {
  Json& network = e.report.json["network"];
  network["inside"] = examine_group(e, "inside machines", e.grid.node(), true);
  // One rank of each machine, where all have the same number and stand together.
  const auto hosts = e.world().gather(e.runtime.host());
  const int nodes = e.runtime.nodes(), ranks = e.runtime.size() / nodes;
  bool regular = ranks * nodes == e.runtime.size();
  for (size_t r = 0; regular && r < hosts.size(); ++r)
    regular = hosts[r] == hosts[r / static_cast<size_t>(ranks) * static_cast<size_t>(ranks)];
  network["between"] = network["link"] = nullptr;
  if (nodes > 1 && regular) {
    ProcessGrid by_node(e.runtime, {nodes, ranks});
    const bool active = by_node.tp_rank() == 0;
    network["between"] = examine_group(e, "between machines", by_node.dp(), active);
    const double bytes = network["between"]["bytes"];
    network["link"] = examine_link(e, by_node.dp(), active, static_cast<int64_t>(bytes / 4));
  }
  network["all"] = examine_group(e, "all ranks", e.world(), true);
}

std::string read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

bool write_file(const std::string& path, const std::string& text) {
  std::ofstream file(path, std::ios::binary | std::ios::trunc);
  file << text;
  file.close();
  return file.good();
}

// Until the file holds this text; seconds, or nothing after kPatience.
std::optional<double> wait_for_text(const std::string& path, const std::string& text) {
  Stopwatch watch;
  while (read_file(path) != text) {
    if (watch.elapsed() > kPatience) return {};
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  return watch.elapsed();
}

void examine_files(Examination& e, const std::string& folder) {
  Communicator& world = e.world();
  std::string place = fmt::format("{}/.amur-doctor-{}-{}", folder, e.runtime.host(), ::getpid());
  world.broadcast(place, 0);
  std::string refused;
  if (world.rank() == 0) {
    std::error_code failure;
    fs::create_directories(place, failure);
    if (failure) refused = failure.message();
  }
  world.broadcast(refused, 0);
  const auto file_of = [&](int rank) { return fmt::format("{}/rank-{}", place, rank); };
  const auto hosts = world.gather(e.runtime.host());
  std::string mine;  // what is wrong here
  double slowest = 0;
  if (refused.empty()) {
    errno = 0;
    if (!write_file(file_of(world.rank()), hosts[static_cast<size_t>(world.rank())]))
      mine = fmt::format("cannot be written ({})", std::strerror(errno));
  }
  world.barrier();
  if (refused.empty() && mine.empty()) {
    const int next = (world.rank() + 1) % world.size();
    const auto seen = wait_for_text(file_of(next), hosts[static_cast<size_t>(next)]);
    if (!seen) mine = "does not show what other hosts write";
    slowest = seen.value_or(0);
  }
  world.barrier();
  // An old text that is still shown is as bad as none.
  if (world.rank() == 0 && refused.empty()) write_file(file_of(0), "changed");
  world.barrier();
  if (refused.empty() && mine.empty()) {
    const auto seen = wait_for_text(file_of(0), "changed");
    if (!seen) mine = "shows the old content of a file that another host has changed";
    slowest = std::max(slowest, seen.value_or(0));
  }
  const auto wrong = world.gather(mine);
  slowest = world.max(slowest);
  if (world.rank() == 0 && refused.empty()) {
    std::error_code ignored;
    fs::remove_all(place, ignored);
  }
  std::map<std::string, std::vector<std::string>> hosts_of;
  for (size_t r = 0; r < wrong.size(); ++r)
    if (auto& list = hosts_of[wrong[r]];
        !wrong[r].empty() && (list.empty() || list.back() != hosts[r]))
      list.push_back(hosts[r]);
  hosts_of.erase("");
  if (!refused.empty())
    e.problem(kExitIo, fmt::format("'{}' cannot be written by rank 0 on {}: {}; choose another "
                                   "--run-dir",
                                   folder, hosts[0], refused));
  for (const auto& [what, list] : hosts_of)
    e.problem(kExitIo, fmt::format("'{}' {} on {}: choose a --run-dir on a file system that all "
                                   "hosts share, and see that it is mounted there",
                                   folder, what, fmt::join(list, ", ")));
  const bool sound = refused.empty() && hosts_of.empty();
  e.report.json["file_system"] = {
      {"folder", folder}, {"shared", sound}, {"seconds_until_seen", slowest}};
  e.line("file system", fmt::format("'{}' {}", folder,
                                    sound ? fmt::format("is written and seen by all ranks within "
                                                        "{:.0f} ms",
                                                        slowest * 1e3)
                                          : "is not shared by all ranks"));
}

void examine_clocks(Examination& e) {
  // Ranks leave a barrier nearly together; the smallest spread of several is the clocks' own.
  double skew = INFINITY;
  std::string furthest;
  const auto hosts = e.world().gather(e.runtime.host());
  for (int turn = 0; turn < 5; ++turn) {
    e.world().barrier();
    const auto now = std::chrono::system_clock::now().time_since_epoch();
    const auto times =
        e.world().gather(std::chrono::duration_cast<std::chrono::microseconds>(now).count());
    double largest = 0;
    std::string host = hosts[0];
    for (size_t r = 0; r < times.size(); ++r)
      if (const double off = 1e-6 * std::abs(static_cast<double>(times[r] - times[0]));
          off > largest) {
        largest = off;
        host = hosts[r];
      }
    if (largest < skew) {
      skew = largest;
      furthest = host;
    }
  }
  e.report.json["clock_skew_seconds"] = skew;
  e.line("clocks", fmt::format("within {:.3g} s", skew));
  if (skew > kSkew)
    e.warnings.push_back(fmt::format(
        "the clock of {} is {:.1f} s off that of {}: time limits and logs will not agree; let the "
        "hosts follow one time server",
        furthest, skew, hosts[0]));
}

}  // namespace

ClusterReport examine_cluster(Runtime& runtime, const std::string& folder) {
  runtime.start_watchdog({});
  ProcessGrid grid(runtime, {runtime.size(), 1}, CommBackend::mpi);
  Examination e{runtime, grid, {}, {}};
  runtime.set_phase("hosts");
  examine_hosts(e);
  examine_versions(e);
  runtime.set_phase("file system");
  examine_files(e, folder);
  runtime.set_phase("clocks");
  examine_clocks(e);
  runtime.set_phase("network");
  examine_network(e);
  e.report.json["problems"] = e.report.problems;
  e.report.json["warnings"] = e.warnings;
  for (const std::string& text : e.warnings) e.line("warning", text);
  for (const std::string& text : e.report.problems) e.line("PROBLEM", text);
  e.line("verdict", e.report.problems.empty() ? "a run can start here" : "a run would fail here");
  return std::move(e.report);
}

}  // namespace amur
