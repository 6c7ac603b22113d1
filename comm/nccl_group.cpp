#include "comm/nccl_group.h"

#include <chrono>
#include <exception>
#include <limits>
#include <thread>

#include "comm/nccl_search.h"
#include "comm/trace.h"
#include "src/core/error.h"
#include "src/core/log.h"

namespace amur {
namespace {

using Clock = std::chrono::steady_clock;

constexpr double kNoLimit = std::numeric_limits<double>::infinity();

// Between two looks at what another thread or the GPU does.
class Pause {
 public:
  void operator()() {
    constexpr int kSpins = 200;
    constexpr auto kNap = std::chrono::microseconds(20);
    if (++times_ > kSpins)
      std::this_thread::sleep_for(kNap);
    else
      std::this_thread::yield();
  }

 private:
  int times_ = 0;
};

}  // namespace

// The first failure of the group ends it, and is what every later call says.
template <class F>
auto NcclGroup::guarded(F&& f) {
  if (!failure_.empty()) throw CommError("{}", failure_);
  try {
    return f();
  } catch (const CommError& error) {
    failure_ = error.what();
    if (!pending_.empty())
      failure_ = fmt::format("waiting for {}: {}", pending_.front().text, error.what());
    group_->abort();
    throw CommError("{}", failure_);
  }
}

NcclGroup::NcclGroup(std::unique_ptr<DeviceGroup> group, const GpuOptions& options, Trace& trace)
    : options_(options), trace_(trace), group_(std::move(group)) {}

std::shared_ptr<NcclGroup> NcclGroup::join(Communicator& members, const GpuOptions& options,
                                           Trace& trace) {
  DeviceCollectives& nccl = nccl_backend();
  std::vector<std::byte> id;
  std::string problem;
  if (members.rank() == 0) {
    try {
      id = nccl.unique_id();
    } catch (const CommError& error) {
      problem = error.what();
    }
  }
  agree_or_throw<CommError>(members, problem);
  members.broadcast(id, 0);
  std::shared_ptr<NcclGroup> group(
      new NcclGroup(nccl.join(id, members.rank(), members.size(), options.device), options, trace));
  group->guarded([&] { group->settle(options.limit_seconds); });
  return group;
}

std::shared_ptr<NcclGroup> NcclGroup::split(int color, int key) {
  // Outlives a failure of this group: a thread of NCCL's, which ends when this group is aborted,
  // writes to it.
  std::shared_ptr<NcclGroup> child;
  guarded([&] {
    child.reset(new NcclGroup(group_->split(color, key), options_, trace_));
    settle(options_.limit_seconds);
    child->guarded([&] { child->settle(options_.limit_seconds); });
  });
  return child;
}

NcclGroup::~NcclGroup() {
  if (!failure_.empty()) return;
  if (std::uncaught_exceptions() > 0) {
    group_->abort();
    return;
  }
  try {
    guarded([&] {
      group_->finish();
      settle(options_.limit_seconds);
    });
    for (const Pending& p : pending_) trace_.end(p.ticket);
  } catch (const CommError& error) {
    Log::warn_here("the end of an NCCL group: {}", error.what());
  }
}

// Until the newest call has been taken.
void NcclGroup::settle(double limit_seconds) {
  const auto start = Clock::now();
  for (Pause pause; !group_->ready(); pause()) {
    trace_.throw_if_interrupted();
    if (std::chrono::duration<double>(Clock::now() - start).count() > limit_seconds)
      throw CommError(
          "NCCL was not ready within {} s (runtime.progress_seconds): NCCL_DEBUG=INFO shows where "
          "it stands; --comm mpi does without",
          limit_seconds);
  }
}

void NcclGroup::follow(Stream other) {
  guarded([&] { group_->follow(other); });
}

void NcclGroup::precede(Stream other) {
  guarded([&] { group_->precede(other); });
}

void NcclGroup::enqueue(std::span<const DeviceOperation> operations) {
  if (operations.empty()) return;
  guarded([&] {
    group_->enqueue(operations);
    settle(kNoLimit);
  });
}

TensorView NcclGroup::staging(int64_t elements) {
  if (!staging_.defined() || staging_.elements() < elements) {
    // Memory comes and goes in the order of the default stream.
    precede(Stream(options_.device));
    staging_ = Tensor(Shape{elements}, DType::f32, options_.device);
    follow(Stream(options_.device));
  }
  return staging_.view().slice(0, elements);
}

void NcclGroup::track(uint64_t ticket, std::string text) {
  // Those that have passed are let go of also where nobody waits for the group.
  constexpr size_t kMostPending = 256;
  guarded([&] {
    pending_.push_back({group_->mark(), ticket, std::move(text)});
    while (pending_.size() > kMostPending && group_->passed(pending_.front().mark)) {
      trace_.end(pending_.front().ticket);
      pending_.pop_front();
    }
  });
}

void NcclGroup::wait() {
  if (pending_.empty() && failure_.empty()) return;
  guarded([&] {
    while (!pending_.empty()) {
      const Pending& first = pending_.front();
      trace_.wait_for(first.ticket);
      for (Pause pause; !group_->passed(first.mark); pause()) {
        group_->ready();  // throws where the group has failed
        trace_.throw_if_interrupted();
      }
      trace_.end(first.ticket);
      pending_.pop_front();
    }
    trace_.waited();
  });
}

}  // namespace amur
