#include "comm/runtime.h"

#include <mpi.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <climits>
#include <csignal>
#include <cstdlib>
#include <exception>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <thread>

#include "comm/launch.h"
#include "comm/mpi_check.h"
#include "comm/mpi_communicator.h"
#include "comm/trace.h"
#include "comm/watchdog.h"
#include "src/core/error.h"
#include "src/core/hash.h"
#include "src/core/log.h"

namespace amur {
namespace {

using Clock = std::chrono::steady_clock;

constexpr size_t kShownCollectives = 5;

std::string library_version() {
  char text[MPI_MAX_LIBRARY_VERSION_STRING] = "";
  int length = 0;
  MPI_Get_library_version(text, &length);
  return text;
}

std::string host_name() {
  char text[HOST_NAME_MAX + 1] = "";
  if (gethostname(text, HOST_NAME_MAX) != 0) return "unknown-host";
  return text;
}

std::string join(const std::vector<int>& numbers) {
  std::string text;
  for (int n : numbers) text += fmt::format("{} ", n);
  return text;
}

std::vector<int> split_numbers(const std::string& text) {
  std::vector<int> numbers;
  std::stringstream words(text);
  for (int n = 0; words >> n;) numbers.push_back(n);
  return numbers;
}

// "0-3" or "0,2,4-5"
std::string ranges(const std::vector<int>& sorted) {
  std::string text;
  for (size_t i = 0; i < sorted.size();) {
    size_t end = i + 1;
    while (end < sorted.size() && sorted[end] == sorted[end - 1] + 1) ++end;
    if (!text.empty()) text += ",";
    text += end - i == 1 ? fmt::format("{}", sorted[i])
                         : fmt::format("{}-{}", sorted[i], sorted[end - 1]);
    i = end;
  }
  return text;
}

// Whether a thread other than this one wants a core.
bool others_run() {
  std::error_code unknown;
  for (const auto& task : std::filesystem::directory_iterator("/proc/self/task", unknown)) {
    if (task.path().filename() == std::to_string(gettid())) continue;
    std::ifstream file(task.path() / "stat");
    std::string stat;
    std::getline(file, stat);
    const size_t name_end = stat.rfind(") ");
    if (name_end != std::string::npos && stat[name_end + 2] == 'R') return true;
  }
  return false;
}

// Open MPI 4.1 takes its PMIx component down while a call into it of MPI_Init's making may still
// wait for the library's own thread: a short program on a busy machine then ended by SIGSEGV. Here
// that thread comes to rest first.
void finalize_mpi() {
  constexpr auto kPatience = std::chrono::seconds(5);
  for (const auto start = Clock::now(); others_run() && Clock::now() - start < kPatience;)
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  MPI_Finalize();
}

}  // namespace

struct Runtime::State {
  bool owns_mpi = false;
  int thread_level = MPI_THREAD_SINGLE;
  int rank = 0, size = 1, node_rank = 0, node_size = 1, nodes = 1;
  std::string host;
  std::vector<std::string> hosts;  // of every rank
  size_t cores = 1;                // this rank may run on
  std::optional<double> quota;
  int fair_threads = 1;
  int threads = 1;
  bool threads_chosen = true;
  std::string position;  // "dp 1, tp 1"
  Trace trace;
  MPI_Comm world = MPI_COMM_NULL;    // our own duplicate
  MPI_Comm failure = MPI_COMM_NULL;  // only for fail_together
  std::atomic_flag aborting = ATOMIC_FLAG_INIT;
  std::unique_ptr<Watchdog> watchdog;

  std::string label() const {
    return fmt::format("rank {}/{}{} {}", rank, size,
                       position.empty() ? "" : fmt::format(" ({})", position), host);
  }
  // Without the rank's label, which the log adds.
  std::string failure_text(const std::string& message) const {
    return fmt::format("{}: {}\n{}", trace.phase(), message, trace.last_text(kShownCollectives));
  }
  void name_this_rank() {
    trace.set_label(label());
    Log::set_rank(rank, size > 1 ? label() : "");
  }
  [[noreturn]] void end_job(int exit_code, const std::string& text);
};

void Runtime::State::end_job(int exit_code, const std::string& text) {
  // The watchdog and the main thread may both come here: the first one ends the process.
  if (aborting.test_and_set())
    for (;;) std::this_thread::sleep_for(std::chrono::seconds(1));
  // Should the log or the library hang, the alarm ends this process, and with it the job.
  std::signal(SIGALRM, SIG_DFL);
  alarm(5);
  if (exit_code == kExitInterrupted)
    Log::warn_here("{}", text);
  else
    Log::error_here("{}", text);
  if (size > 1) MPI_Abort(MPI_COMM_WORLD, exit_code);
  std::_Exit(exit_code);
}

Runtime::Runtime(int* argc, char*** argv) : state_(std::make_unique<State>()) {
  State& s = *state_;
  const LaunchInfo launch = read_launch(process_environment);
  const std::string library = library_version();
  int initialized = 0;
  check_mpi(MPI_Initialized(&initialized), "MPI_Initialized");
  s.quota = cpu_quota();
  std::vector<int> cores = affinity_cores();
  s.cores = cores.size();
  if (!initialized) {
    if (const std::string problem = launch_problem(launch, library, process_environment);
        !problem.empty())
      throw UsageError("{}", problem);
    // Only mpirun sees by itself that ranks share cores; spinning ranks would starve each other.
    const double available = s.quota.value_or(static_cast<double>(s.cores));
    if (launch.local_tasks > std::min(available, static_cast<double>(s.cores)))
      setenv("OMPI_MCA_mpi_yield_when_idle", "1", 0);
    // Groups of ranks over NCCL share a GPU: their work starts there in the order in which this
    // program asks for it, which is the same on every rank. Set before there is a second thread.
    setenv("NCCL_LAUNCH_ORDER_IMPLICIT", "1", 0);
    check_mpi(MPI_Init_thread(argc, argv, MPI_THREAD_MULTIPLE, &s.thread_level), "MPI_Init_thread");
    s.owns_mpi = true;
  } else {
    check_mpi(MPI_Query_thread(&s.thread_level), "MPI_Query_thread");
  }
  check_mpi(MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler");
  check_mpi(MPI_Comm_set_errhandler(MPI_COMM_SELF, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler");
  check_mpi(MPI_Comm_rank(MPI_COMM_WORLD, &s.rank), "MPI_Comm_rank");
  check_mpi(MPI_Comm_size(MPI_COMM_WORLD, &s.size), "MPI_Comm_size");
  if (const std::string problem = size_problem(launch, library, s.size); !problem.empty()) {
    finalize_mpi();  // single runs: no one waits for the others
    throw UsageError("{}", problem);
  }
  check_mpi(MPI_Comm_dup(MPI_COMM_WORLD, &s.world), "MPI_Comm_dup");
  check_mpi(MPI_Comm_dup(MPI_COMM_WORLD, &s.failure), "MPI_Comm_dup");
  s.host = host_name();
  s.name_this_rank();

  const auto all = MpiCommunicator::split(&s.world, 0, "runtime", &s.trace);
  const auto node = MpiCommunicator::split_by_node(&s.world, "runtime node", &s.trace);
  s.node_rank = node->rank();
  s.node_size = node->size();
  s.nodes = static_cast<int>(all->sum(int64_t{s.node_rank == 0}));
  s.hosts = all->gather(s.host);
  std::vector<std::vector<int>> cores_of_rank;
  for (const std::string& text : node->gather(join(cores)))
    cores_of_rank.push_back(split_numbers(text));
  s.fair_threads = fair_threads(cores_of_rank, s.node_rank, s.quota);
  s.threads = s.fair_threads;
}

Runtime::~Runtime() {
  State& s = *state_;
  if (std::uncaught_exceptions() > 0) {
    // The others may not come along, so no collective call; the watchdog goes on until the end.
    static_cast<void>(state_.release());
    return;
  }
  s.watchdog.reset();
  MPI_Comm_free(&s.failure);
  MPI_Comm_free(&s.world);
  if (s.owns_mpi) finalize_mpi();
}

void Runtime::start_watchdog(const RuntimeOptions& options) {
  State& s = *state_;
  AMUR_CHECK(!s.watchdog, "the watchdog runs already");
  if (!(options.liveness_seconds > 0) || !(options.progress_seconds > 0))
    throw UsageError("runtime.liveness_seconds={} and runtime.progress_seconds={} must be above 0",
                     options.liveness_seconds, options.progress_seconds);
  AMUR_CHECK(options.threads >= 0, "{} threads", options.threads);
  s.threads = options.threads > 0 ? options.threads : s.fair_threads;
  s.threads_chosen = options.threads == 0;
  s.trace.set_check_collectives(options.check_collectives);
  const bool messages = s.thread_level == MPI_THREAD_MULTIPLE;
  if (!messages && s.size > 1)
    Log::warn(
        "{} does not give MPI_THREAD_MULTIPLE: no heartbeats; each rank watches only its own "
        "progress, and a stopped rank is found by the launcher alone",
        library_text());
  std::vector<std::string> labels;
  for (int r = 0; r < s.size; ++r)
    labels.push_back(fmt::format("rank {}/{} {}", r, s.size, s.hosts[static_cast<size_t>(r)]));
  s.watchdog = std::make_unique<Watchdog>(
      &s.world, std::move(labels),
      WatchdogLimits{options.liveness_seconds, options.progress_seconds}, s.trace, messages,
      [this](const std::string& message) { abort_job(kExitComm, message); });
}

int Runtime::rank() const {
  return state_->rank;
}
int Runtime::size() const {
  return state_->size;
}
int Runtime::node_rank() const {
  return state_->node_rank;
}
int Runtime::node_size() const {
  return state_->node_size;
}
int Runtime::nodes() const {
  return state_->nodes;
}
const std::string& Runtime::host() const {
  return state_->host;
}
bool Runtime::threads_may_communicate() const {
  return state_->thread_level == MPI_THREAD_MULTIPLE;
}
int Runtime::cores_per_rank() const {
  return state_->fair_threads;
}
int Runtime::threads() const {
  return state_->threads;
}
Trace& Runtime::trace() {
  return state_->trace;
}
const void* Runtime::mpi_world() const {
  return &state_->world;
}
void Runtime::set_phase(const std::string& phase) {
  state_->trace.set_phase(phase);
}
void Runtime::advance() {
  state_->trace.advance();
}

void Runtime::set_position(const std::string& position) {
  state_->position = position;
  state_->name_this_rank();
}

std::string Runtime::threads_text() const {
  const State& s = *state_;
  std::string text = fmt::format("{} thread{} per rank ({} core{}", s.threads,
                                 s.threads == 1 ? "" : "s", s.cores, s.cores == 1 ? "" : "s");
  if (s.node_size > 1) text += fmt::format(", {} ranks on this machine", s.node_size);
  if (s.quota) text += fmt::format(", container quota {:.3g}", *s.quota);
  if (!s.threads_chosen) text += ", as configured";
  return text + ")";
}

std::string Runtime::library_text() const {
  const char* level = "single";
  if (state_->thread_level == MPI_THREAD_FUNNELED) level = "funneled";
  if (state_->thread_level == MPI_THREAD_SERIALIZED) level = "serialized";
  if (state_->thread_level == MPI_THREAD_MULTIPLE) level = "multiple";
  return fmt::format("{}, thread {}", short_library_name(library_version()), level);
}

std::string Runtime::hosts_text() const {
  const auto& hosts = state_->hosts;
  std::vector<std::pair<std::string, std::vector<int>>> ranks_of;  // in order of appearance
  for (size_t r = 0; r < hosts.size(); ++r) {
    auto at = ranks_of.begin();
    while (at != ranks_of.end() && at->first != hosts[r]) ++at;
    if (at == ranks_of.end()) at = ranks_of.insert(at, {hosts[r], {}});
    at->second.push_back(static_cast<int>(r));
  }
  std::string text = fmt::format("{} host{}:", ranks_of.size(), ranks_of.size() == 1 ? "" : "s");
  for (size_t i = 0; i < ranks_of.size(); ++i)
    text += fmt::format("{} {} (rank{} {})", i ? "," : "", ranks_of[i].first,
                        ranks_of[i].second.size() == 1 ? "" : "s", ranges(ranks_of[i].second));
  return text;
}

void Runtime::abort_job(int exit_code, const std::string& message) {
  state_->end_job(exit_code, state_->failure_text(message));
}

int Runtime::fail_together(int exit_code, const std::string& message) {
  State& s = *state_;
  const bool plain = exit_code == kExitUsage || exit_code == kExitInterrupted;
  const std::string text = plain ? message : s.failure_text(message);
  // Where all ranks found the same fault of a file, their collectives say nothing about it.
  const std::string shared_text =
      exit_code == kExitIo ? fmt::format("{}: {}", s.trace.phase(), message) : text;
  // Ranks with the same message find each other by a non-blocking agreement of their own; a rank
  // that is still at work does not take part, and the wait for it ends.
  const auto hash = static_cast<int64_t>(fnv1a(message, mix64(static_cast<uint64_t>(exit_code))));
  int64_t mine[2] = {hash, ~hash}, most[2] = {0, 0};
  MPI_Request request = MPI_REQUEST_NULL;
  int done = 0;
  bool works =
      MPI_Iallreduce(mine, most, 2, MPI_INT64_T, MPI_MAX, s.failure, &request) == MPI_SUCCESS;
  constexpr auto kPatience = std::chrono::seconds(2);
  for (const auto start = Clock::now(); works && !done && Clock::now() - start < kPatience;) {
    works = MPI_Test(&request, &done, MPI_STATUS_IGNORE) == MPI_SUCCESS;
    if (!done) std::this_thread::sleep_for(std::chrono::microseconds(200));
  }
  if (!works || !done || most[0] != ~most[1]) s.end_job(exit_code, text);
  if (s.rank == 0) {
    Log::set_rank(0, "");
    if (exit_code == kExitInterrupted)
      Log::warn_here("{}", shared_text);
    else
      Log::error_here("{}", shared_text);
  }
  return exit_code;
}

namespace {

// The exception in flight as exit code and message.
std::pair<int, std::string> current_failure() {
  try {
    throw;
  } catch (const Error& e) {
    return {e.exit_code(), e.what()};
  } catch (const std::bad_alloc&) {
    return {kExitBug, "out of memory"};
  } catch (const std::exception& e) {
    return {kExitBug, fmt::format("unexpected failure: {}", e.what())};
  } catch (...) {
    return {kExitBug, "unexpected failure of unknown type"};
  }
}

}  // namespace

int run_main(int argc, char** argv, const std::function<int(Runtime&)>& body) {
  std::unique_ptr<Runtime> runtime;
  try {
    runtime = std::make_unique<Runtime>(&argc, &argv);
  } catch (...) {
    const auto [code, message] = current_failure();
    if (read_launch(process_environment).task == 0) Log::error_here("{}", message);
    return code;
  }
  try {
    return body(*runtime);
  } catch (...) {
    const auto [code, message] = current_failure();
    return runtime->fail_together(code, message);
  }
}

}  // namespace amur
