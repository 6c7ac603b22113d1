// A group whose collectives do nothing: the same work on every rank, without communication.
//
// Numbers that would come from other ranks are this rank's own, so a step goes on as it would.
#pragma once

#include <cstring>
#include <string>

#include "comm/communicator.h"
#include "comm/trace.h"

namespace amur {

class SilentCommunicator : public Communicator {
 public:
  SilentCommunicator(int rank, int size, Trace* trace)
      : Communicator(rank, size, "silent", trace) {}

 private:
  static void fill(ConstTensorView shard, TensorView full, std::span<const int64_t> counts,
                   bool ids) {
    int64_t first = 0, rank = 0;
    for (const int64_t count : counts) {
      const int64_t rows = std::min(count, shard.rows());
      const TensorView to = full.slice(first, rows);
      if (rows > 0 && to.raw() != shard.raw())
        std::memcpy(to.raw(), shard.slice(0, rows).raw(), to.bytes());
      // Ids of texts must differ.
      if (ids && full.dtype() == DType::i64)
        for (int64_t i = 0; i < to.elements(); ++i) to.as<int64_t>()[i] += rank;
      first += count;
      ++rank;
    }
  }

  void do_all_reduce(std::span<const TensorView>, ReduceOp, Stream) override {}
  void do_all_gather(ConstTensorView shard, TensorView full, std::span<const int64_t> counts,
                     Stream) override {
    fill(shard, full, counts, true);
  }
  void do_reduce_scatter(TensorView full, TensorView shard, std::span<const int64_t> counts,
                         Stream) override {
    int64_t first = 0;
    for (int r = 0; r < rank(); ++r) first += counts[static_cast<size_t>(r)];
    const TensorView own = full.slice(first, shard.rows());
    if (own.raw() != shard.raw()) std::memcpy(shard.raw(), own.raw(), shard.bytes());
  }
  void do_broadcast(std::span<const TensorView>, int, Stream) override {}
  void do_synchronize(Stream) override {}
  void do_side_sum(std::span<const TensorView>, std::span<const TensorView>,
                   uint64_t ticket) override {
    trace().end(ticket);
  }
  Stream do_side_stream(const SideStreamOptions&) override { return Stream(Device::cpu(), this); }
  void host_barrier() override {}
  void host_all_reduce(TensorView, ReduceOp) override {}
  void host_all_gather(ConstTensorView shard, TensorView full,
                       std::span<const int64_t> counts) override {
    fill(shard, full, counts, false);
  }
  void host_broadcast(TensorView, int) override {}
};

}  // namespace amur
