#include "src/train/replica_check.h"

#include <algorithm>
#include <map>

#include "src/train/checkpoint/checkpoint_format.h"

namespace amur {
namespace {

// The first tensor whose check sums differ over this rank's groups; their number if none does.
size_t first_difference(const std::vector<StoredTensor>& tensors, const std::vector<int64_t>& sums,
                        ProcessGrid& grid) {
  // max(h) and max(~h) = ~min(h): all equal where they say the same.
  std::vector<int64_t> over_dp, over_all;
  for (size_t i = 0; i < tensors.size(); ++i) {
    std::vector<int64_t>& group = tensors[i].replicated ? over_all : over_dp;
    group.push_back(sums[i]);
    group.push_back(~sums[i]);
  }
  const auto view = [](std::vector<int64_t>& v) {
    return TensorView(v.data(), {std::ssize(v)}, DType::i64);
  };
  grid.dp().all_reduce(view(over_dp), ReduceOp::max);
  grid.world().all_reduce(view(over_all), ReduceOp::max);
  grid.world().synchronize();
  size_t next_dp = 0, next_all = 0;
  for (size_t i = 0; i < tensors.size(); ++i) {
    const int64_t* pair = tensors[i].replicated ? &over_all[next_all] : &over_dp[next_dp];
    (tensors[i].replicated ? next_all : next_dp) += 2;
    if (pair[0] != ~pair[1]) return i;
  }
  return tensors.size();
}

// "rank 3 (dp 1, tp 1) differs from rank 1 (dp 0, tp 1)", of all sums of one tensor by world rank.
std::string differing_ranks(const std::vector<int64_t>& sums, bool replicated, GridShape shape) {
  const auto name = [&](size_t rank) {
    return fmt::format("rank {} (dp {}, tp {})", rank, rank / static_cast<size_t>(shape.tp),
                       rank % static_cast<size_t>(shape.tp));
  };
  const size_t groups = replicated ? 1 : static_cast<size_t>(shape.tp);
  std::string text;
  for (size_t group = 0; group < groups; ++group) {
    std::map<int64_t, int> copies;
    for (size_t r = group; r < sums.size(); r += groups) ++copies[sums[r]];
    size_t usual = group;
    for (size_t r = group; r < sums.size(); r += groups)
      if (copies[sums[r]] > copies[sums[usual]]) usual = r;
    for (size_t r = group; r < sums.size(); r += groups)
      if (sums[r] != sums[usual])
        text += fmt::format("{}{} differs from {}", text.empty() ? "" : ", ", name(r), name(usual));
  }
  return text;
}

}  // namespace

void require_equal_replicas(ParameterSet& parameters, std::span<const OptimizerSlot> slots,
                            const std::string& optimizer, int64_t step, ProcessGrid& grid) {
  if (grid.world().size() == 1) return;
  const std::vector<StoredTensor> tensors =
      stored_tensors(parameters, slots, optimizer, grid.tp_rank(), grid.shape().tp);
  std::vector<int64_t> sums;
  for (const StoredTensor& t : tensors)
    sums.push_back(static_cast<int64_t>(checksum_of(t.value, t.slab.first, t.global)));
  const auto first = static_cast<size_t>(
      grid.world().min(static_cast<int64_t>(first_difference(tensors, sums, grid))));
  if (first == tensors.size()) return;
  throw NumericError(
      "step {}: the copies of {} are no longer equal: {}. A memory, a machine or the communication "
      "library makes mistakes; go on from the newest checkpoint, without it",
      step, tensors[first].path,
      differing_ranks(grid.world().gather(sums[first]), tensors[first].replicated, grid.shape()));
}

}  // namespace amur
