#include "comm/process_grid.h"

#include <cstdlib>

#include "comm/nccl_communicator.h"
#include "comm/nccl_search.h"
#include "comm/runtime.h"
#include "src/core/log.h"

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

std::string ranks_that_share_a_gpu(std::span<const std::string> gpu) {
  for (size_t second = 0; second < gpu.size(); ++second)
    for (size_t first = 0; first < second; ++first)
      if (gpu[first] == gpu[second]) return fmt::format("ranks {} and {}", first, second);
  return "";
}

// Why the groups of this grid cannot go over NCCL: the same text on every rank. Collective.
std::string ProcessGrid::nccl_problem(const GpuOptions& gpu) {
  const auto first_of = [&](const std::string& own) -> std::string {
    const std::vector<std::string> all = world_->gather(own);
    for (size_t r = 0; r < all.size(); ++r)
      if (!all[r].empty()) return fmt::format("rank {}: {}", r, all[r]);
    return "";
  };
  if (std::string text =
          first_of(gpu.device == Device::cpu()
                       ? "its tensors are on the CPU (--device cuda puts them on a GPU)"
                       : gpu.nccl_problem);
      !text.empty())
    return text;
  // What NCCL itself takes for a machine.
  const char* named = std::getenv("NCCL_HOSTID");
  const int64_t machine = node_->min(int64_t{world_->rank()});
  std::string identity, failure;
  try {
    identity = fmt::format("{} {}", named ? named : fmt::format("machine {}", machine),
                           nccl_backend().gpu_identity(gpu.device));
  } catch (const CommError& error) {
    failure = error.what();
  }
  if (std::string text = first_of(failure); !text.empty()) return text;
  const std::string sharing = ranks_that_share_a_gpu(world_->gather(identity));
  return sharing.empty() ? "" : sharing + " share a GPU, of which NCCL wants one a rank";
}

ProcessGrid::ProcessGrid(Runtime& runtime, GridShape shape, CommBackend backend,
                         const GpuOptions& gpu)
    : shape_(shape) {
  const int size = runtime.size();
  if (shape.dp < 1 || shape.tp < 1 || int64_t{shape.dp} * shape.tp != size) {
    const std::string mend =
        shape.tp >= 1 && size % shape.tp == 0
            ? fmt::format("set parallel.dp={}", size / shape.tp)
            : fmt::format("set parallel.tp to a divisor of {} and parallel.dp to the rest", size);
    throw UsageError("{} rank{} are not dp {} x tp {}: {}, or start {} ranks", size,
                     size == 1 ? "" : "s", shape.dp, shape.tp, mend, int64_t{shape.dp} * shape.tp);
  }
  const int dp_rank = runtime.rank() / shape.tp, tp_rank = runtime.rank() % shape.tp;
  runtime.set_position(fmt::format("dp {}, tp {}", dp_rank, tp_rank));
  const void* all = runtime.mpi_world();
  Trace* trace = &runtime.trace();
  world_ = MpiCommunicator::split(all, 0, "world", trace);
  node_ = MpiCommunicator::split_by_node(all, "node", trace);
  if (shape.tp > 1) {
    const std::vector<int64_t> machine = world_->gather(node_->min(int64_t{runtime.rank()}));
    if (const std::vector<int> group = divided_tp_group(shape, machine); !group.empty())
      throw UsageError(
          "parallel.tp: ranks {} to {} would share every layer, but are not on one machine ({}): "
          "start a multiple of {} ranks on each, in order (mpirun --map-by ppr:{}:node, srun "
          "--ntasks-per-node={} --distribution=block), or lower parallel.tp",
          group.front(), group.back(), runtime.hosts_text(), shape.tp, shape.tp, shape.tp);
  }

  std::shared_ptr<NcclGroup> everyone;
  if (backend == CommBackend::nccl ||
      (backend == CommBackend::automatic && gpu.device != Device::cpu() && size > 1)) {
    const std::string problem = nccl_problem(gpu);
    if (!problem.empty() && backend == CommBackend::nccl)
      throw UsageError("--comm nccl: {}; use --comm mpi", problem);
    if (!problem.empty()) {
      Log::info("tensors travel between ranks through host memory: {}", problem);
    } else if (size > 1) {
      everyone = NcclGroup::join(*world_, gpu, *trace);
      Log::info("tensors travel between ranks by {}", nccl_backend().library_text());
    }
  }
  // A group of one never asks its back end.
  const auto group_of = [&](int color, int key, int members,
                            const char* name) -> std::unique_ptr<Communicator> {
    if (!everyone || members == 1) return MpiCommunicator::split(all, color, name, trace);
    return std::make_unique<NcclCommunicator>(
        all, color, name, trace, members == size ? everyone : everyone->split(color, key));
  };
  if (everyone) world_ = group_of(0, runtime.rank(), size, "world");
  dp_ = group_of(tp_rank, dp_rank, shape.dp, "dp");
  tp_ = group_of(dp_rank, tp_rank, shape.tp, "tp");
}

ProcessGrid::~ProcessGrid() = default;

std::unique_ptr<Communicator> ProcessGrid::world_beside(const std::string& name, Trace& trace) {
  return MpiCommunicator::split(world_->mpi_handle(), 0, name, &trace);
}

}  // namespace amur
