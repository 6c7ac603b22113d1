#include "src/train/checkpoint/run_folder.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>
#include <thread>

#include "src/core/log.h"
#include "src/train/agreement.h"
#include "src/train/checkpoint/checkpoint_format.h"

namespace amur {
namespace {

namespace fs = std::filesystem;

constexpr const char* kLogName = "log.txt";
constexpr const char* kMetricsName = "metrics.jsonl";
constexpr const char* kEvaluationName = "evaluation.jsonl";
constexpr double kSecondsBetweenLooks = 1;

std::string host_name() {
  char name[256] = {};
  if (::gethostname(name, sizeof(name) - 1) != 0) return "unknown";
  return name;
}

void append_line(const std::string& path, const std::string& line) {
  std::ofstream out(path, std::ios::app | std::ios::binary);
  out << line;
  if (!line.ends_with('\n')) out << '\n';
  out.flush();
  if (!out) throw IoError("cannot append to '{}': {}", path, std::strerror(errno));
}

// Under a temporary name first, so that a reader sees the old text or the new one.
void replace_file(const std::string& path, const std::string& text) {
  const std::string temporary = path + kTemporarySuffix;
  {
    std::ofstream out(temporary, std::ios::binary | std::ios::trunc);
    out << text;
    out.flush();
    if (!out) throw IoError("cannot write '{}': {}", temporary, std::strerror(errno));
  }
  if (::rename(temporary.c_str(), path.c_str()) != 0)
    throw IoError("cannot rename '{}' to '{}': {}", temporary, path, std::strerror(errno));
}

std::optional<int64_t> step_of_line(const std::string& line) {
  const auto object = nlohmann::ordered_json::parse(line, nullptr, false);
  if (!object.is_object() || !object.contains("step") || !object["step"].is_number())
    return std::nullopt;
  return object["step"].get<int64_t>();
}

bool is_complete(const std::string& path) {
  try {
    return Hdf5File(path, Hdf5File::Mode::read).attribute_as<int64_t>("/", "complete") == 1;
  } catch (const IoError&) {
    return false;
  }
}

std::string environment(const char* name) {
  const char* value = std::getenv(name);
  return value ? value : "";
}

std::string read_all(int fd) {
  char text[4096];
  const ssize_t n = ::pread(fd, text, sizeof(text), 0);
  return n > 0 ? std::string(text, static_cast<size_t>(n)) : "";
}

// Whether a process that left `owner` behind is surely gone. `kernel_lock`: the kernel's lock on
// the file works and was free.
bool surely_gone(const LockOwner& owner, const LockOwner& self, bool kernel_lock) {
  if (owner.host == self.host)
    return kernel_lock || (::kill(static_cast<pid_t>(owner.process), 0) != 0 && errno == ESRCH);
  return !owner.job.empty() && owner.job == self.job && owner.restart < self.restart;
}

}  // namespace

std::string checkpoint_name(int64_t step) {
  return fmt::format("step-{:08}.h5", step);
}

std::optional<int64_t> step_of_checkpoint(const std::string& name) {
  constexpr std::string_view kPrefix = "step-", kSuffix = ".h5";
  if (!name.starts_with(kPrefix) || !name.ends_with(kSuffix)) return std::nullopt;
  int64_t step = -1;
  const char* first = name.data() + kPrefix.size();
  const char* last = name.data() + name.size() - kSuffix.size();
  if (first >= last) return std::nullopt;
  const auto [end, error] = std::from_chars(first, last, step);
  if (error != std::errc() || end != last || step < 0) return std::nullopt;
  return step;
}

std::vector<int64_t> steps_to_prune(std::vector<int64_t> steps, int64_t current, int64_t keep,
                                    std::optional<int64_t> best) {
  std::erase_if(steps, [&](int64_t s) { return s > current; });
  std::sort(steps.rbegin(), steps.rend());
  steps.erase(steps.begin(), steps.begin() + std::min<int64_t>(std::max<int64_t>(keep, 1),
                                                               static_cast<int64_t>(steps.size())));
  if (best) std::erase(steps, *best);
  return steps;
}

void cut_back_lines(const std::string& path, int64_t step) {
  std::ifstream in(path, std::ios::binary);
  if (!in) {
    if (fs::exists(path)) throw IoError("cannot read '{}': {}", path, std::strerror(errno));
    return;
  }
  std::string kept, line;
  bool cut = false;
  while (std::getline(in, line)) {
    const std::optional<int64_t> at = step_of_line(line);
    const bool finished = !in.eof();  // the newline was there
    if (finished && at && *at <= step)
      kept += line + '\n';
    else
      cut = true;
  }
  if (cut) replace_file(path, kept);
}

std::string LockOwner::text() const {
  return fmt::format("process {} on {}{}", process, host,
                     job.empty() ? std::string() : fmt::format(" ({})", job));
}

LockOwner this_process() {
  LockOwner owner{host_name(), ::getpid(), "", 0};
  for (const auto& [variable, system] : {std::pair{"AMUR_JOB_ID", "relaunch"},
                                         {"SLURM_JOB_ID", "slurm"},
                                         {"PBS_JOBID", "pbs"},
                                         {"LSB_JOBID", "lsf"},
                                         {"JOB_ID", "job"}}) {
    if (const std::string id = environment(variable); !id.empty()) {
      owner.job = fmt::format("{} {}", system, id);
      break;
    }
  }
  const char* restarts =
      owner.job.starts_with("relaunch") ? "AMUR_RESTART_COUNT" : "SLURM_RESTART_COUNT";
  owner.restart = std::atoll(environment(restarts).c_str());
  return owner;
}

std::string to_line(const LockOwner& owner) {
  return nlohmann::ordered_json{{"host", owner.host},
                                {"process", owner.process},
                                {"job", owner.job},
                                {"restart", owner.restart}}
             .dump() +
         "\n";
}

std::optional<LockOwner> parse_lock_owner(const std::string& line) {
  const auto object = nlohmann::ordered_json::parse(line, nullptr, false);
  try {
    return LockOwner{object.at("host").get<std::string>(), object.at("process").get<int64_t>(),
                     object.at("job").get<std::string>(), object.at("restart").get<int64_t>()};
  } catch (const nlohmann::ordered_json::exception&) {
    return std::nullopt;
  }
}

// The file is never removed, only emptied: removing it would let two processes lock two files of
// one name.
FolderLock::FolderLock(const std::string& file)
    : fd_(::open(file.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644)) {
  if (fd_ < 0) throw IoError("cannot write '{}': {}", file, std::strerror(errno));
  const int status = ::flock(fd_, LOCK_EX | LOCK_NB);
  const bool held = status != 0 && errno == EWOULDBLOCK;
  const std::string line = read_all(fd_);
  const std::optional<LockOwner> owner = parse_lock_owner(line);
  const LockOwner self = this_process();
  const std::string who = owner ? owner->text() : "another process";
  const std::string folder = fs::path(file).parent_path().string();
  std::string refusal;
  if (held)
    refusal = fmt::format("run folder '{}' is in use by {}: wait for it or choose another folder",
                          folder, who);
  else if (owner && !surely_gone(*owner, self, status == 0))
    refusal = fmt::format(
        "run folder '{}' was left locked by {}, which cannot be asked from {}: remove '{}' if that "
        "run is over",
        folder, who, self.host, file);
  if (!refusal.empty()) {
    ::close(fd_);
    throw UsageError("{}", refusal);
  }
  if (owner) Log::info("run folder '{}': {} is gone, its lock is taken over", folder, who);
  const std::string mine = to_line(self);
  if (::ftruncate(fd_, 0) != 0 ||
      ::pwrite(fd_, mine.data(), mine.size(), 0) != static_cast<ssize_t>(mine.size())) {
    const int reason = errno;
    ::close(fd_);
    throw IoError("cannot write '{}': {}", file, std::strerror(reason));
  }
}

FolderLock::~FolderLock() {
  if (::ftruncate(fd_, 0) != 0)
    Log::warn("the lock of the run folder cannot be emptied: {}", std::strerror(errno));
  ::close(fd_);
}

RunFolder::RunFolder(const std::string& path, ProcessGrid& grid)
    : path_(path), world_(grid.world()), looks_(grid.node().rank() == 0) {
  on_first_rank(world_, [&] {
    std::error_code failure;
    fs::create_directories(checkpoints_dir(), failure);
    if (failure)
      throw IoError("cannot create '{}': {}; choose another --run-dir", checkpoints_dir(),
                    failure.message());
  });
  check_visible();
  std::string refusal;
  on_first_rank(world_, [&] {
    try {
      lock_ = std::make_unique<FolderLock>(path_ + "/lock");
    } catch (const UsageError& e) {
      refusal = e.what();
    }
  });
  agree_or_throw<UsageError>(world_, refusal);
  on_first_rank(world_, [&] {
    std::vector<fs::path> stale;
    for (const auto& entry : fs::directory_iterator(checkpoints_dir()))
      if (entry.path().extension() == kTemporarySuffix) stale.push_back(entry.path());
    for (const fs::path& file : stale) {
      Log::info("removing '{}', which was not written to its end", file.string());
      fs::remove(file);
    }
  });
}

RunFolder::~RunFolder() {
  if (lock_) Log::close_file();
}

void RunFolder::check_visible() {
  std::string name = fmt::format("{}/.seen-by-{}-{}", path_, host_name(), ::getpid());
  world_.broadcast(name, 0);
  on_first_rank(world_, [&] { replace_file(name, ""); });
  bool seen = false;
  // Network file systems may show a new name a little later.
  for (int attempt = 0; attempt < 20 && !(seen = fs::exists(name)); ++attempt)
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
  std::set<std::string> blind;
  for (const std::string& host : world_.gather(seen ? std::string() : host_name()))
    if (!host.empty()) blind.insert(host);
  if (world_.rank() == 0) ::unlink(name.c_str());
  if (!blind.empty())
    throw UsageError(
        "run folder '{}' is not seen by {}: choose one on a file system that all hosts share",
        path_, fmt::join(blind, ", "));
}

bool RunFolder::in_sight() {
  if (!looks_ || since_look_.elapsed() < kSecondsBetweenLooks) return seen_;
  std::error_code ignored;
  seen_ = fs::is_directory(checkpoints_dir(), ignored);
  since_look_.lap();
  return seen_;
}

void RunFolder::require_in_sight() {
  std::set<std::string> blind;
  for (const std::string& host : world_.gather(seen_ ? std::string() : host_name()))
    if (!host.empty()) blind.insert(host);
  if (!blind.empty())
    throw IoError("run folder '{}' is no longer seen by {}: see that it is there and mounted",
                  path_, fmt::join(blind, ", "));
}

std::string RunFolder::checkpoint_path(int64_t step) const {
  return checkpoints_dir() + "/" + checkpoint_name(step);
}

bool RunFolder::has_checkpoints() const {
  bool found = false;
  on_every_rank(world_, [&] {
    for (const auto& entry : fs::directory_iterator(checkpoints_dir()))
      found = found || step_of_checkpoint(entry.path().filename().string());
  });
  return found;
}

void RunFolder::start(const std::string& config_yaml, int64_t step) {
  on_first_rank(world_, [&] {
    replace_file(path_ + "/config.yaml", config_yaml);
    cut_back_lines(path_ + "/" + kMetricsName, step);
    cut_back_lines(path_ + "/" + kEvaluationName, step);
    Log::open_file(path_ + "/" + kLogName);
  });
}

void RunFolder::write_choices(const std::string& json) {
  on_first_rank(world_, [&] { replace_file(path_ + "/choices.json", json + "\n"); });
}

void RunFolder::append_metrics(const std::string& json) {
  append_line(path_ + "/" + kMetricsName, json);
}

void RunFolder::append_evaluation(int64_t step, const std::string& json) {
  nlohmann::ordered_json line{{"step", step}};
  line.update(nlohmann::ordered_json::parse(json));
  append_line(path_ + "/" + kEvaluationName, line.dump());
}

void RunFolder::publish(int64_t step, const CheckpointConfig& config,
                        const std::map<std::string, double>& best, Communicator& world) {
  on_first_rank(world, [&] {
    const std::string link = checkpoints_dir() + "/latest", temporary = link + kTemporarySuffix;
    fs::remove(temporary);
    fs::create_symlink(checkpoint_name(step), temporary);
    fs::rename(temporary, link);
    prune(step, config, best);
  });
}

void RunFolder::prune(int64_t step, const CheckpointConfig& config,
                      const std::map<std::string, double>& best) {
  std::optional<int64_t> best_step;
  if (const auto it = best.find("step"); config.keep_best && it != best.end())
    best_step = static_cast<int64_t>(it->second);
  std::vector<int64_t> steps;
  for (const auto& entry : fs::directory_iterator(checkpoints_dir()))
    if (const auto s = step_of_checkpoint(entry.path().filename().string());
        s && is_complete(entry.path().string()))
      steps.push_back(*s);
  for (int64_t s : steps_to_prune(std::move(steps), step, config.keep, best_step))
    fs::remove(checkpoint_path(s));
}

}  // namespace amur
