// A group of ranks over NCCL: what is under way in it, waiting for that, and what happens when it
// fails. The groups of a grid whose members are the same share one.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <span>
#include <string>
#include <utility>

#include "comm/communicator.h"
#include "comm/device_collectives.h"
#include "src/core/tensor.h"

namespace amur {

// What groups need to know of a rank whose tensors are on a GPU.
struct GpuOptions {
  Device device;  // the CPU: it has none there
  // Why this rank cannot use NCCL; empty: nccl_backend() is there (comm/nccl_search.h).
  std::string nccl_problem;
  // to = from, between f32 and bf16, on `device`: a kernel, of which this layer knows none.
  void (*cast)(ConstTensorView from, TensorView to, Stream stream) = nullptr;
  // To set a group up or take it down, all ranks being at it. How long a collective may take is the
  // watchdog's affair: it knows whether the others are at work.
  double limit_seconds = 600;
};

// Every function throws CommError once something has failed: NCCL, another rank as far as NCCL
// knows, or because the trace was interrupted. The first failure aborts the group, so that nothing
// on the GPU waits for ever.
class NcclGroup {
 public:
  // Between all ranks of `members`, of which no two may use the same GPU. Collective over them.
  static std::shared_ptr<NcclGroup> join(Communicator& members, const GpuOptions& options,
                                         Trace& trace);
  // Those that name the same colour, ordered by key. Collective over this group.
  std::shared_ptr<NcclGroup> split(int color, int key);
  // Collective, except while an exception unwinds.
  ~NcclGroup();
  NcclGroup(const NcclGroup&) = delete;
  NcclGroup& operator=(const NcclGroup&) = delete;

  const GpuOptions& options() const { return options_; }
  Stream stream() const { return group_->stream(); }

  // Order between the group's stream and another one, as DeviceGroup.
  void follow(Stream other);
  void precede(Stream other);
  // One call for all; returns when NCCL has taken it, for which other ranks may have to come along.
  void enqueue(std::span<const DeviceOperation> operations);
  // Work space on the GPU, [elements] f32, for use in the group's stream only.
  TensorView staging(int64_t elements);

  // What was enqueued since the last call is the collective `ticket` of the trace, `text` in
  // messages.
  void track(uint64_t ticket, std::string text);
  // Until all that is tracked is done; notes that in the trace.
  void wait();

 private:
  struct Pending {
    uint64_t mark, ticket;
    std::string text;
  };
  NcclGroup(std::unique_ptr<DeviceGroup> group, const GpuOptions& options, Trace& trace);
  template <class F>
  auto guarded(F&& f);
  void settle(double limit_seconds);

  const GpuOptions options_;
  Trace& trace_;
  Tensor staging_;
  std::unique_ptr<DeviceGroup> group_;
  std::deque<Pending> pending_;
  std::string failure_;
};

}  // namespace amur
