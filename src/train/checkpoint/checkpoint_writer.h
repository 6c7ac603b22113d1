// Writes the checkpoints of a run: while the caller waits, or beside it from a copy in host memory.
#pragma once

#include <atomic>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <thread>

#include "comm/trace.h"
#include "src/train/checkpoint/checkpoint.h"
#include "src/train/checkpoint/run_folder.h"

namespace amur {

class Runtime;

// The file of a step is the same, bit for bit, in both ways, and is published in the run folder
// when it is complete. A write beside the training uses a group of its own, and all HDF5 of the
// process: nobody else may take part in a collective call of HDF5 before `wait` has returned.
class CheckpointWriter {
 public:
  // `parameters` and `slots` must outlive it. Whether it writes beside the caller is decided here,
  // alike on all ranks: as configured, or where a core is left over. Collective.
  CheckpointWriter(const Config& config, ParameterSet& parameters, std::vector<OptimizerSlot> slots,
                   const std::string& optimizer, RunFolder& folder, ProcessGrid& grid,
                   Runtime& runtime);
  // Waits for the checkpoint that is under way; its failure is no one's any more.
  ~CheckpointWriter();
  CheckpointWriter(const CheckpointWriter&) = delete;
  CheckpointWriter& operator=(const CheckpointWriter&) = delete;

  bool beside_training() const { return beside_; }
  size_t snapshot_bytes() const { return beside_ ? snapshot_.bytes() : 0; }  // of this rank

  // Returns when the file is complete, or as soon as its content is copied; at most one is under
  // way, so that it may have to wait for the one before. Throws as `wait`. Collective.
  void save(const CheckpointInfo& info);
  // True once the checkpoint under way has failed on this rank: then all ranks should `wait`.
  bool failed() const { return failed_; }
  // How long the newest complete one took to write; 0 before there is one.
  double last_seconds() const { return last_seconds_; }
  // Until the checkpoint under way is complete; IoError, on every rank, where it is not.
  // Collective.
  void wait();

 private:
  void write(const CheckpointInfo& info, Communicator& group);
  void join(const std::function<void()>& between);

  CheckpointConfig config_;
  RunFolder& folder_;
  ProcessGrid& grid_;
  Runtime& runtime_;
  Checkpoint::Snapshot snapshot_;
  bool beside_ = false;

  Trace trace_;                          // of the writing thread
  std::unique_ptr<Communicator> group_;  // all ranks; the writing thread's own
  std::thread thread_;
  std::atomic<bool> done_{true}, failed_{false};
  std::atomic<double> last_seconds_{0};
  std::exception_ptr failure_;
  std::string path_;  // of the one under way
};

}  // namespace amur
