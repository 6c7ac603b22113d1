// Sums that run beside the work of the caller, one after the other, on a thread of their own.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <exception>
#include <memory>
#include <mutex>
#include <span>
#include <thread>
#include <vector>

#include "comm/communicator.h"

namespace amur {

class GroupSum;

class SideQueue {
 public:
  // `parent` points to the MPI_Comm of the group. Without MPI_THREAD_MULTIPLE, or without
  // `options.overlap`, a sum is done when `submit` returns. Collective.
  SideQueue(const void* parent, const SideStreamOptions& options, Trace& trace);
  // Collective, except while an exception unwinds: what has not been done then is dropped.
  ~SideQueue();
  SideQueue(const SideQueue&) = delete;
  SideQueue& operator=(const SideQueue&) = delete;

  void submit(std::span<const TensorView> tensors, std::span<const TensorView> residuals,
              uint64_t ticket);
  // Returns when all is done; throws what made a sum fail, and when the trace is interrupted.
  void wait();
  SideTraffic traffic() const;
  const SideStreamOptions& options() const { return options_; }

 private:
  struct Job {
    std::vector<TensorView> tensors, residuals;
    uint64_t ticket;
  };
  void run();
  void perform(const Job& job);

  SideStreamOptions options_;
  Trace& trace_;
  std::atomic<bool> stop_{false};
  std::unique_ptr<GroupSum> sum_;
  std::atomic<int64_t> nanoseconds_{0};

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Job> jobs_;  // the first one is being done
  std::exception_ptr failure_;
  std::thread thread_;
};

}  // namespace amur
