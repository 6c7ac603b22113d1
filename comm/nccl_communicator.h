// The NCCL back end: tensors on this rank's GPU go by NCCL, everything else as in the MPI back end.
//
// A collective is put into the group's stream, behind what its caller's stream holds and before
// what that is given afterwards, and the call returns: `synchronize` waits, and looks for failures
// while it does. The side stream is the group's stream, without anything after it; tensors for it
// are made in the default stream.
//
// Sums are NCCL's plain sum. bf16 is widened to f32 for it, because NCCL adds bf16 in bf16 at every
// hop, and rounded once at the end. Which bits a sum has depends on the algorithm that NCCL chooses
// for the machine, the number of ranks and the size.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "comm/mpi_communicator.h"
#include "comm/nccl_group.h"

namespace amur {

class NcclCommunicator final : public MpiCommunicator {
 public:
  // As MpiCommunicator::split; `group` has the same members in the same order.
  NcclCommunicator(const void* parent, int color, std::string name, Trace* trace,
                   std::shared_ptr<NcclGroup> group);

  bool overlaps(Device device) const override;
  // NCCL does not say; what it did is not in it.
  SideTraffic side_traffic() const override { return {}; }

 private:
  void do_all_reduce(std::span<const TensorView> tensors, ReduceOp op, Stream stream) override;
  void do_all_gather(ConstTensorView shard, TensorView full, std::span<const int64_t> counts,
                     Stream stream) override;
  void do_reduce_scatter(TensorView full, TensorView shard, std::span<const int64_t> counts,
                         Stream stream) override;
  void do_broadcast(std::span<const TensorView> tensors, int root, Stream stream) override;
  void do_synchronize(Stream stream) override;
  void do_side_sum(std::span<const TensorView> tensors, std::span<const TensorView> residuals,
                   uint64_t ticket) override;
  Stream do_side_stream(const SideStreamOptions& options) override;

  bool is_mine(ConstTensorView tensor) const;
  template <class F>
  void in_order(Stream stream, F&& enqueue);
  void sum_widened(std::span<const TensorView> tensors);
  void reduce(std::span<const TensorView> tensors, ReduceOp op);
  void cast(ConstTensorView from, TensorView to);

  std::shared_ptr<NcclGroup> group_;
  SideStreamOptions side_options_;
  bool side_open_ = false;
};

}  // namespace amur
