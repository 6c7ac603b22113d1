// The sum of large vectors over a group, through shared memory inside a machine and by one exchange
// between machines.
//
// A vector passes in segments of half a megabyte, 8 to 32 at a time. Of each segment the ranks of a
// machine add a slice each, in rank order; then the first rank of every machine sends each other
// one its part of the segment, adds what it gets in rank order, and sends the result to all: 2 (n -
// 1) / n of the vector goes out of each of n machines, which is the least that is possible. The
// order of additions depends on the placement of the ranks only. Nothing of the size of a vector is
// allocated.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <span>

#include "src/core/tensor.h"

namespace amur {

class Trace;

class GroupSum {
 public:
  // `parent` points to an MPI_Comm. Without `through_nodes` every rank counts as a machine of its
  // own. Waits throw CommError when the trace is interrupted or `stop` is set. Collective.
  GroupSum(const void* parent, bool through_nodes, Trace& trace, const std::atomic<bool>& stop);
  // Collective, except while an exception unwinds.
  ~GroupSum();
  GroupSum(const GroupSum&) = delete;
  GroupSum& operator=(const GroupSum&) = delete;

  // In place, of f32 or of f64 tensors. With residuals (f32, same shapes), what travels between
  // machines is rounded to bf16, and they are set to what this rank has rounded away: 0 but on the
  // first rank of a machine. Collective.
  void sum(std::span<const TensorView> tensors, std::span<const TensorView> residuals);

  // In messages, by this rank, so far.
  int64_t bytes_sent() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace amur
