#include "src/train/checkpoint/checkpoint_writer.h"

#include <pthread.h>

#include <chrono>
#include <csignal>
#include <utility>

#include "comm/runtime.h"
#include "src/core/log.h"
#include "src/train/stopwatch.h"

namespace amur {
namespace {

// With fewer cores a rank, a writing thread takes more from the training than it gives.
constexpr int kManyCores = 4;

bool write_beside(CheckpointAsync choice, ProcessGrid& grid, Runtime& runtime) {
  if (choice == CheckpointAsync::on && !runtime.threads_may_communicate())
    Log::warn("checkpoint.async: on, but this MPI does not give MPI_THREAD_MULTIPLE: off");
  const bool spare =
      runtime.cores_per_rank() > runtime.threads() || runtime.cores_per_rank() >= kManyCores;
  const bool wanted =
      choice == CheckpointAsync::on || (choice == CheckpointAsync::automatic && spare);
  return grid.world().all_agree(wanted && runtime.threads_may_communicate());
}

}  // namespace

CheckpointWriter::CheckpointWriter(const Config& config, ParameterSet& parameters,
                                   std::vector<OptimizerSlot> slots, const std::string& optimizer,
                                   RunFolder& folder, ProcessGrid& grid, Runtime& runtime)
    : config_(config.checkpoint),
      folder_(folder),
      grid_(grid),
      runtime_(runtime),
      snapshot_(parameters, slots, optimizer, grid),
      beside_(write_beside(config.checkpoint.async, grid, runtime)) {
  if (!beside_) return;
  trace_.set_label(runtime.trace().label());
  trace_.set_check_collectives(runtime.trace().check_collectives());
  group_ = grid.world_beside("checkpoint", trace_);
}

CheckpointWriter::~CheckpointWriter() {
  if (!thread_.joinable()) return;
  if (!done_) Log::info("waiting until '{}' is written", path_);
  // Nothing may be thrown here: where the job is to end, the watchdog ends this process.
  join([] {});
}

void CheckpointWriter::write(const CheckpointInfo& info, Communicator& group) {
  Checkpoint::save(path_, info, snapshot_, file_options(config_), group);
  folder_.publish(info.step, config_, info.best, group);
}

void CheckpointWriter::save(const CheckpointInfo& info) {
  Stopwatch watch;
  wait();
  const double waited = watch.lap();
  path_ = folder_.checkpoint_path(info.step);
  runtime_.set_phase("writing a checkpoint");
  if (!beside_) {
    write(info, grid_.world());
    last_seconds_ = watch.lap();
    Log::info("checkpoint {} in {:.1f} s", path_, last_seconds());
    return;
  }
  snapshot_.take();
  const double copied = watch.lap();
  done_ = false;
  thread_ = std::thread([this, info, waited, copied] {
    // Signals are the main thread's.
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, nullptr);
    Stopwatch writing;
    try {
      write(info, *group_);
      last_seconds_ = writing.elapsed();
      Log::info(
          "checkpoint {} in {:.1f} s beside the training, which waited {:.2f} s for the one before "
          "and {:.2f} s for the copy",
          path_, last_seconds(), waited, copied);
    } catch (...) {
      failure_ = std::current_exception();
      failed_ = true;
    }
    done_ = true;
  });
}

// The writer's progress is this rank's while it waits.
void CheckpointWriter::join(const std::function<void()>& between) {
  uint64_t events = 0;
  while (!done_) {
    between();
    if (const uint64_t now = trace_.position().events; now != events) {
      events = now;
      runtime_.advance();
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
  thread_.join();
}

void CheckpointWriter::wait() {
  if (!thread_.joinable()) return;
  runtime_.set_phase(fmt::format("waiting until '{}' is written", path_));
  join([this] { runtime_.trace().throw_if_interrupted(); });
  failed_ = false;
  if (const std::exception_ptr failure = std::exchange(failure_, nullptr))
    std::rethrow_exception(failure);
}

}  // namespace amur
