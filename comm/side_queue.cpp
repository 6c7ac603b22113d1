#include "comm/side_queue.h"

#include <mpi.h>
#include <pthread.h>

#include <chrono>
#include <csignal>

#include "comm/group_sum.h"
#include "comm/mpi_check.h"
#include "comm/trace.h"

namespace amur {

SideQueue::SideQueue(const void* parent, const SideStreamOptions& options, Trace& trace)
    : options_(options),
      trace_(trace),
      sum_(std::make_unique<GroupSum>(parent, options.through_nodes, trace, stop_)) {
  int level = MPI_THREAD_SINGLE;
  check_mpi(MPI_Query_thread(&level), "MPI_Query_thread");
  if (options.overlap && level == MPI_THREAD_MULTIPLE) thread_ = std::thread([this] { run(); });
}

SideQueue::~SideQueue() {
  {
    std::lock_guard lock(mutex_);
    stop_ = true;
  }
  changed_.notify_all();
  if (thread_.joinable()) thread_.join();
}

void SideQueue::submit(std::span<const TensorView> tensors, std::span<const TensorView> residuals,
                       uint64_t ticket) {
  Job job{{tensors.begin(), tensors.end()}, {residuals.begin(), residuals.end()}, ticket};
  if (!thread_.joinable()) {
    trace_.wait_for(ticket);
    perform(job);
    return trace_.waited();
  }
  {
    std::lock_guard lock(mutex_);
    jobs_.push_back(std::move(job));
  }
  changed_.notify_all();
}

void SideQueue::wait() {
  constexpr auto kLook = std::chrono::milliseconds(20);
  std::unique_lock lock(mutex_);
  uint64_t awaited = 0;
  while (!jobs_.empty() && !failure_) {
    if (jobs_.front().ticket != awaited) trace_.wait_for(awaited = jobs_.front().ticket);
    changed_.wait_for(lock, kLook);
    trace_.throw_if_interrupted();
  }
  if (failure_) std::rethrow_exception(failure_);
  if (awaited > 0) trace_.waited();
}

SideTraffic SideQueue::traffic() const {
  return {static_cast<double>(nanoseconds_.load()) * 1e-9, sum_->bytes_sent()};
}

void SideQueue::perform(const Job& job) {
  const auto start = std::chrono::steady_clock::now();
  sum_->sum(job.tensors, job.residuals);
  nanoseconds_ += (std::chrono::steady_clock::now() - start) / std::chrono::nanoseconds(1);
  trace_.end(job.ticket);
}

void SideQueue::run() {
  // Signals are the main thread's.
  sigset_t all;
  sigfillset(&all);
  pthread_sigmask(SIG_BLOCK, &all, nullptr);
  std::unique_lock lock(mutex_);
  for (;;) {
    changed_.wait(lock, [&] { return stop_ || !jobs_.empty(); });
    if (stop_) return;
    const Job& job = jobs_.front();
    lock.unlock();
    std::exception_ptr failure;
    try {
      perform(job);
    } catch (...) {
      failure = std::current_exception();
    }
    lock.lock();
    if (failure) {
      failure_ = failure;
      changed_.notify_all();
      return;
    }
    jobs_.pop_front();
    changed_.notify_all();
  }
}

}  // namespace amur
