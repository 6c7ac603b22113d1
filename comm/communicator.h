// One group of ranks and its collectives.
//
// The data plane takes tensors and is ordered by stream; the control plane is host-side and
// blocking. There is no average operation: whoever wants a mean states the scale. There are no
// request objects and no public grouping.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "comm/reduce_op.h"
#include "src/core/call_site.h"
#include "src/core/tensor.h"

namespace amur {

// How large sums travel on the side stream of a group.
struct SideStreamOptions {
  // They go on while the caller computes; otherwise they are done when the call returns. The result
  // is the same to the bit.
  bool overlap = true;
  // Ranks of one machine add through shared memory, and one of them exchanges with the other
  // machines; otherwise every rank exchanges with every other.
  bool through_nodes = true;
  bool operator==(const SideStreamOptions&) const = default;
};

// What the side stream of a group has done since it was opened.
struct SideTraffic {
  double seconds = 0;      // its collectives took
  int64_t bytes_sent = 0;  // by this rank in messages; what passes through shared memory is none
};

class Trace;
struct CollectiveRecord;

// All ranks of the group make the same calls in the same order with the same dtype and counts.
// Every operation checks its arguments, records itself in the trace, and returns at once in a group
// of one. Failures throw CommError naming operation, call site and group.
class Communicator {
 public:
  virtual ~Communicator() = default;
  Communicator(const Communicator&) = delete;
  Communicator& operator=(const Communicator&) = delete;

  int rank() const { return rank_; }
  int size() const { return size_; }
  const std::string& name() const { return name_; }  // "dp", for messages

  // Data plane. f32, f64, bf16 (summed in f32), i32, i64, u8 (max, min).
  // In place. A list is one operation; large tensors are cut so that temporaries stay small.
  void all_reduce(std::span<const TensorView> tensors, ReduceOp op, Stream stream = {},
                  CallSite site = CallSite::here());
  void all_reduce(TensorView tensor, ReduceOp op, Stream stream = {},
                  CallSite site = CallSite::here());
  // Rank r contributes counts[r] rows (counts is the same everywhere); full = all rows in rank
  // order. `shard` may be its own slot inside `full`. Rows may be 0.
  void all_gather(ConstTensorView shard, TensorView full, std::span<const int64_t> counts,
                  Stream stream = {}, CallSite site = CallSite::here());
  // shard = the sum over ranks of their `full`, rows of this rank. `full` may be overwritten.
  void reduce_scatter(TensorView full, TensorView shard, std::span<const int64_t> counts,
                      Stream stream = {}, CallSite site = CallSite::here());
  void broadcast(std::span<const TensorView> tensors, int root, Stream stream = {},
                 CallSite site = CallSite::here());
  // A sum of f32 tensors in which what travels between machines (or, without `through_nodes`,
  // between ranks) is rounded to bf16. What that took away is put into `residuals`, of the same
  // shapes: the result plus the residuals of all ranks is the sum. Side stream only.
  void all_reduce_rounded(std::span<const TensorView> tensors,
                          std::span<const TensorView> residuals, Stream stream,
                          CallSite site = CallSite::here());
  // The stream of sums that run beside the work of the caller, in the order of the calls: tensors
  // must stay as they are until `synchronize` on it. It takes `all_reduce` with ReduceOp::sum, of
  // one list of f32 or f64 tensors, and all_reduce_rounded. Opens it where that was not done yet.
  // Collective.
  Stream side_stream(const SideStreamOptions& options, CallSite site = CallSite::here());
  virtual SideTraffic side_traffic() const { return {}; }
  // Whether the side stream takes tensors that lie there.
  virtual bool overlaps(Device device) const { return device == Device::cpu(); }
  // The one blocking point of the data plane: polls for errors and for the watchdog.
  void synchronize(Stream stream = {}, CallSite site = CallSite::here());

  // Control plane.
  void barrier(CallSite site = CallSite::here());
  // True on every rank if `ok` is true on every rank.
  bool all_agree(bool ok, CallSite site = CallSite::here());
  int64_t sum(int64_t value, CallSite site = CallSite::here());
  double sum(double value, CallSite site = CallSite::here());
  int64_t max(int64_t value, CallSite site = CallSite::here());
  double max(double value, CallSite site = CallSite::here());
  int64_t min(int64_t value, CallSite site = CallSite::here());
  // One value of every rank, in rank order.
  std::vector<int64_t> gather(int64_t value, CallSite site = CallSite::here());
  std::vector<std::string> gather(std::string_view text, CallSite site = CallSite::here());
  void broadcast(std::vector<std::byte>& bytes, int root, CallSite site = CallSite::here());
  void broadcast(std::string& text, int root, CallSite site = CallSite::here());

  // The MPI_Comm behind the group, for collective file access: a pointer to it, to keep mpi.h out
  // of this header. Null for a group that has none.
  virtual const void* mpi_handle() const { return nullptr; }

 protected:
  Communicator(int rank, int size, std::string name, Trace* trace);
  Trace& trace() const { return *trace_; }
  // For a back end in the midst of an operation of the data plane: it goes on after the call. The
  // ticket is for Trace::end.
  uint64_t go_on_beside();
  bool is_side_stream(Stream stream) const;

 private:
  // Data plane: what a back end implements. Arguments are checked; the group has two ranks or more.
  virtual void do_all_reduce(std::span<const TensorView> tensors, ReduceOp op, Stream stream) = 0;
  virtual void do_all_gather(ConstTensorView shard, TensorView full,
                             std::span<const int64_t> counts, Stream stream) = 0;
  virtual void do_reduce_scatter(TensorView full, TensorView shard, std::span<const int64_t> counts,
                                 Stream stream) = 0;
  virtual void do_broadcast(std::span<const TensorView> tensors, int root, Stream stream) = 0;
  virtual void do_synchronize(Stream stream) = 0;
  // Starts a sum on the side stream and calls Trace::end(ticket) when it is done. No residuals:
  // exact.
  virtual void do_side_sum(std::span<const TensorView> tensors,
                           std::span<const TensorView> residuals, uint64_t ticket) = 0;
  virtual Stream do_side_stream(const SideStreamOptions& options) = 0;
  // Control plane, on host memory: always MPI.
  virtual void host_barrier() = 0;
  virtual void host_all_reduce(TensorView tensor, ReduceOp op) = 0;
  virtual void host_all_gather(ConstTensorView shard, TensorView full,
                               std::span<const int64_t> counts) = 0;
  virtual void host_broadcast(TensorView tensor, int root) = 0;

  template <class Backend>
  void run(CollectiveRecord record, Backend&& backend);
  void start_side_sum(CollectiveRecord record, std::span<const TensorView> tensors,
                      std::span<const TensorView> residuals);
  void compare_over_group(const CollectiveRecord& record);
  template <class T>
  T reduce_value(T value, ReduceOp op, const char* name, CallSite site);
  std::vector<std::string> gather_texts(std::string_view text);

  int rank_;
  int size_;
  std::string name_;
  Trace* trace_;
  uint64_t sequence_ = 0;
  bool goes_on_ = false;  // the operation that is being called
  Stream side_;
};

// All ranks learn of a failure on any of them: call with the error text of this rank ("" if it is
// well). If some rank failed, throws `Failure(first failing rank's text)` on every rank.
template <class Failure>
void agree_or_throw(Communicator& group, const std::string& error,
                    CallSite site = CallSite::here()) {
  if (group.all_agree(error.empty(), site)) return;
  std::string text = error;
  int64_t first = group.min(error.empty() ? int64_t{group.size()} : int64_t{group.rank()}, site);
  group.broadcast(text, static_cast<int>(first), site);
  throw Failure("{}", text);
}

}  // namespace amur
