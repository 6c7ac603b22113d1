// The ranks of a run as a dp x tp grid; tp runs fastest, so that a tp group stays inside a node.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "comm/communicator.h"
#include "comm/nccl_group.h"

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

// Two ranks that use the same GPU, as "ranks 0 and 2"; empty where each has its own. gpu[r] is what
// tells the GPUs of the whole job apart.
std::string ranks_that_share_a_gpu(std::span<const std::string> gpu);

// How tensors on GPUs travel. automatic: by NCCL where that can be had, otherwise through host
// memory, with one line that says why.
enum class CommBackend : uint8_t { automatic, mpi, nccl };

class ProcessGrid {
 public:
  // Throws UsageError "5 ranks are not dp 2 x tp 2: ..." on every rank where the shape does not
  // fit, where a tp group would reach over several machines, and where NCCL is asked for but cannot
  // be had: all ranks need it, and a GPU each, as NCCL_HOSTID and the machine tell them apart.
  ProcessGrid(Runtime& runtime, GridShape shape, CommBackend backend = CommBackend::automatic,
              const GpuOptions& gpu = {});
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
  std::string nccl_problem(const GpuOptions& gpu);

  GridShape shape_;
  std::unique_ptr<Communicator> world_, dp_, tp_, node_;
};

}  // namespace amur
