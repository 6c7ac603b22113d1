// The folder of a run: config.yaml, choices.json, metrics.jsonl, evaluation.jsonl, log.txt,
// checkpoints/, and a lock.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "comm/process_grid.h"
#include "src/train/config/config.h"
#include "src/train/stopwatch.h"

namespace amur {

// "step-00001000.h5", and back; nothing for another name.
std::string checkpoint_name(int64_t step);
std::optional<int64_t> step_of_checkpoint(const std::string& name);

// Which of these complete checkpoints go when `current` was just written: all up to `current` but
// the `keep` newest and `best`. Those beyond it belong to a run that was taken up again further
// back, and stay.
std::vector<int64_t> steps_to_prune(std::vector<int64_t> steps, int64_t current, int64_t keep,
                                    std::optional<int64_t> best);

// Cuts a file of JSON objects, one a line, behind the last line with "step" <= `step`: what a
// killed run wrote after its checkpoint, and a line that it did not finish. A missing file is fine.
void cut_back_lines(const std::string& path, int64_t step);

// Who holds a run folder.
struct LockOwner {
  std::string host;
  int64_t process = 0;
  std::string job;           // "slurm 4711"; empty outside a batch system
  int64_t restart = 0;       // how often the batch system started the job again
  std::string text() const;  // "process 123 on node07 (slurm 4711)"
};
LockOwner this_process();
std::string to_line(const LockOwner& owner);
std::optional<LockOwner> parse_lock_owner(const std::string& line);

// Holds `file` until it is destroyed. What a dead process left is taken over: the kernel has
// dropped its lock, and it was on this host, or was an earlier start of the same batch job.
class FolderLock {
 public:
  // Throws UsageError where another process holds it or may hold it, IoError where the file cannot
  // be written.
  explicit FolderLock(const std::string& file);
  ~FolderLock();
  FolderLock(const FolderLock&) = delete;
  FolderLock& operator=(const FolderLock&) = delete;

 private:
  int fd_;
};

// Opened by all ranks, written by rank 0. Everything but `append_*` is collective, and fails alike
// on every rank.
class RunFolder {
 public:
  // Makes the folder, checks that every host sees it (UsageError naming those that do not), takes
  // the lock and removes checkpoints that were not written to their end.
  RunFolder(const std::string& path, ProcessGrid& grid);
  ~RunFolder();

  const std::string& path() const { return path_; }
  std::string checkpoints_dir() const { return path_ + "/checkpoints"; }
  std::string checkpoint_path(int64_t step) const;
  bool has_checkpoints() const;
  // Whether this host still sees the folder; asks the file system once a second at most, on one
  // rank of each host, the others say yes. Not collective.
  bool in_sight();
  // IoError naming the hosts that do not see the folder any more.
  void require_in_sight();

  // The run begins, or goes on, behind `step`: writes config.yaml, cuts the .jsonl files back, and
  // opens log.txt.
  void start(const std::string& config_yaml, int64_t step);
  // choices.json (src/train/run_record.h).
  void write_choices(const std::string& json);
  // Rank 0 only. One JSON object a line; of an evaluation, with the step put in front.
  void append_metrics(const std::string& json);
  void append_evaluation(int64_t step, const std::string& json);
  // The checkpoint of this step is complete: moves `latest` to it, then prunes. best["step"], where
  // there is one, is kept as config.keep_best says. `world`: all ranks, of the thread that calls.
  void publish(int64_t step, const CheckpointConfig& config,
               const std::map<std::string, double>& best, Communicator& world);
  void publish(int64_t step, const CheckpointConfig& config,
               const std::map<std::string, double>& best) {
    publish(step, config, best, world_);
  }

 private:
  void check_visible();
  void prune(int64_t step, const CheckpointConfig& config,
             const std::map<std::string, double>& best);

  std::string path_;
  Communicator& world_;
  bool looks_;  // for its host
  bool seen_ = true;
  Stopwatch since_look_;
  std::unique_ptr<FolderLock> lock_;  // rank 0
};

}  // namespace amur
