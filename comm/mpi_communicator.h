// The MPI back end: tensors, through host memory where they are on a GPU, and the control plane of
// every group.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "comm/communicator.h"

namespace amur {

class SideQueue;

// Waits poll non-blocking operations, so that the watchdog can end them. The same call on the same
// grid gives the same bits.
class MpiCommunicator : public Communicator {
 public:
  // The ranks of `parent` (a pointer to an MPI_Comm) that name the same colour, in the order of
  // their parent ranks. Collective over the parent.
  static std::unique_ptr<MpiCommunicator> split(const void* parent, int color, std::string name,
                                                Trace* trace);
  // The ranks of `parent` that share this machine's memory. Collective over the parent.
  static std::unique_ptr<MpiCommunicator> split_by_node(const void* parent, std::string name,
                                                        Trace* trace);
  // Frees the group, except while an exception unwinds: the other ranks may not come along.
  ~MpiCommunicator() override;

  const void* mpi_handle() const override;
  SideTraffic side_traffic() const override;

 protected:
  MpiCommunicator(const void* parent, int color, std::string name, Trace* trace);

  void do_all_reduce(std::span<const TensorView> tensors, ReduceOp op, Stream stream) override;
  void do_all_gather(ConstTensorView shard, TensorView full, std::span<const int64_t> counts,
                     Stream stream) override;
  void do_reduce_scatter(TensorView full, TensorView shard, std::span<const int64_t> counts,
                         Stream stream) override;
  void do_broadcast(std::span<const TensorView> tensors, int root, Stream stream) override;
  void do_synchronize(Stream stream) override;

 private:
  struct Group;  // the MPI_Comm
  static std::unique_ptr<Group> split_group(const void* parent, int color);
  MpiCommunicator(std::unique_ptr<Group> group, std::string name, Trace* trace);

  void do_side_sum(std::span<const TensorView> tensors, std::span<const TensorView> residuals,
                   uint64_t ticket) override;
  Stream do_side_stream(const SideStreamOptions& options) override;
  void host_barrier() override;
  void host_all_reduce(TensorView tensor, ReduceOp op) override;
  void host_all_gather(ConstTensorView shard, TensorView full,
                       std::span<const int64_t> counts) override;
  void host_broadcast(TensorView tensor, int root) override;

  template <class T>
  void reduce_scatter_typed(const T* full, T* shard, std::span<const int64_t> counts,
                            int64_t columns);

  std::unique_ptr<Group> group_;
  std::unique_ptr<SideQueue> side_;  // once its stream was asked for
  // Small and bf16 tensors of an all-reduce are gathered here; grows to one piece at most.
  std::vector<std::byte> staging_;
};

}  // namespace amur
