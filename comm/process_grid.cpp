#include "comm/process_grid.h"

#include "comm/mpi_communicator.h"
#include "comm/runtime.h"

namespace amur {

std::vector<std::vector<int>> dp_groups(GridShape shape) {
  std::vector<std::vector<int>> groups(static_cast<size_t>(shape.tp));
  for (int rank = 0; rank < shape.dp * shape.tp; ++rank)
    groups[static_cast<size_t>(rank % shape.tp)].push_back(rank);
  return groups;
}

std::vector<std::vector<int>> tp_groups(GridShape shape) {
  std::vector<std::vector<int>> groups(static_cast<size_t>(shape.dp));
  for (int rank = 0; rank < shape.dp * shape.tp; ++rank)
    groups[static_cast<size_t>(rank / shape.tp)].push_back(rank);
  return groups;
}

std::vector<int> divided_tp_group(GridShape shape, std::span<const int64_t> machine) {
  for (const std::vector<int>& group : tp_groups(shape))
    for (int rank : group)
      if (machine[static_cast<size_t>(rank)] != machine[static_cast<size_t>(group[0])])
        return group;
  return {};
}

ProcessGrid::ProcessGrid(Runtime& runtime, GridShape shape, CommBackend backend) : shape_(shape) {
  const int size = runtime.size();
  if (shape.dp < 1 || shape.tp < 1 || int64_t{shape.dp} * shape.tp != size) {
    const std::string mend =
        shape.tp >= 1 && size % shape.tp == 0
            ? fmt::format("set parallel.dp={}", size / shape.tp)
            : fmt::format("set parallel.tp to a divisor of {} and parallel.dp to the rest", size);
    throw UsageError("{} rank{} are not dp {} x tp {}: {}, or start {} ranks", size,
                     size == 1 ? "" : "s", shape.dp, shape.tp, mend, int64_t{shape.dp} * shape.tp);
  }
  if (backend == CommBackend::nccl)
    throw UsageError("this build has no NCCL: use --comm mpi (or automatic)");
  const int dp_rank = runtime.rank() / shape.tp, tp_rank = runtime.rank() % shape.tp;
  runtime.set_position(fmt::format("dp {}, tp {}", dp_rank, tp_rank));
  const void* all = runtime.mpi_world();
  Trace* trace = &runtime.trace();
  world_ = MpiCommunicator::split(all, 0, "world", trace);
  dp_ = MpiCommunicator::split(all, tp_rank, "dp", trace);
  tp_ = MpiCommunicator::split(all, dp_rank, "tp", trace);
  node_ = MpiCommunicator::split_by_node(all, "node", trace);
  if (shape.tp == 1) return;
  const std::vector<int64_t> machine = world_->gather(node_->min(int64_t{runtime.rank()}));
  if (const std::vector<int> group = divided_tp_group(shape, machine); !group.empty())
    throw UsageError(
        "parallel.tp: ranks {} to {} would share every layer, but are not on one machine ({}): "
        "start a multiple of {} ranks on each, in order (mpirun --map-by ppr:{}:node, srun "
        "--ntasks-per-node={} --distribution=block), or lower parallel.tp",
        group.front(), group.back(), runtime.hosts_text(), shape.tp, shape.tp, shape.tp);
}

ProcessGrid::~ProcessGrid() = default;

std::unique_ptr<Communicator> ProcessGrid::world_beside(const std::string& name, Trace& trace) {
  return MpiCommunicator::split(world_->mpi_handle(), 0, name, &trace);
}

}  // namespace amur
