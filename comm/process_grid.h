// The ranks of a run as a dp x tp grid; tp runs fastest, so that a tp group stays inside a node.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "comm/communicator.h"

namespace amur {

class Runtime;

struct GridShape {
  int dp = 1;
  int tp = 1;
  bool operator==(const GridShape&) const = default;
};

// World rank r is (dp r / tp, tp r % tp). Pure functions: the members of each group, in rank order.
std::vector<std::vector<int>> dp_groups(GridShape shape);
std::vector<std::vector<int>> tp_groups(GridShape shape);

// The members of the first tp group whose ranks do not share a machine; empty where all do.
// machine[r] is equal for world ranks r of one machine.
std::vector<int> divided_tp_group(GridShape shape, std::span<const int64_t> machine);

enum class CommBackend : uint8_t { automatic, mpi, nccl };

class ProcessGrid {
 public:
  // Throws UsageError "5 ranks are not dp 2 x tp 2: ..." on every rank where the shape does not
  // fit, and where a tp group would reach over several machines.
  ProcessGrid(Runtime& runtime, GridShape shape, CommBackend backend = CommBackend::automatic);
  ~ProcessGrid();

  Communicator& world() { return *world_; }
  Communicator& dp() { return *dp_; }  // same tp position
  Communicator& tp() { return *tp_; }  // same dp position
  // All ranks again, for another thread of each of them, which has a trace of its own. Collective.
  std::unique_ptr<Communicator> world_beside(const std::string& name, Trace& trace);
  Communicator& node() { return *node_; }  // ranks that share this machine's memory
  GridShape shape() const { return shape_; }
  int dp_rank() const { return dp_->rank(); }
  int tp_rank() const { return tp_->rank(); }

 private:
  GridShape shape_;
  std::unique_ptr<Communicator> world_, dp_, tp_, node_;
};

}  // namespace amur
