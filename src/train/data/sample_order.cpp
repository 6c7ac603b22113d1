#include "src/train/data/sample_order.h"

#include <algorithm>
#include <numeric>
#include <queue>

#include "src/train/data/data.h"

namespace amur {

SampleOrder::SampleOrder(const Dataset& data, uint64_t seed, int64_t epoch)
    : epoch_(epoch),
      draw_key_(RandomKey(seed)
                    .fold(static_cast<uint64_t>(RandomPurpose::source_draw))
                    .fold(static_cast<uint64_t>(epoch))) {
  if (!data.weighted()) {
    permutation_.emplace(RandomKey(seed)
                             .fold(static_cast<uint64_t>(RandomPurpose::epoch_order))
                             .fold(static_cast<uint64_t>(epoch)),
                         static_cast<uint64_t>(data.samples()));
    return;
  }
  double sum = 0;
  for (int i = 0; i < data.sources(); ++i) {
    sum += data.source(i).weight;
    const auto [first, last] = data.range_of(i);
    shares_.push_back({sum, first, last - first});
  }
  for (Share& share : shares_) share.up_to /= sum;
  shares_.back().up_to = 1;
}

int64_t SampleOrder::operator()(int64_t position) const {
  const auto at = static_cast<uint64_t>(position);
  if (permutation_) return static_cast<int64_t>((*permutation_)(at));
  const double u = draw_key_.uniform(2 * at);
  const auto share = std::find_if(shares_.begin(), shares_.end(),
                                  [&](const Share& candidate) { return u < candidate.up_to; });
  return share->first +
         static_cast<int64_t>(draw_key_.below(2 * at + 1, static_cast<uint64_t>(share->count)));
}

std::vector<int32_t> share_of_rank(std::span<const int64_t> bytes, int rank, int ranks) {
  std::vector<int32_t> order(bytes.size());
  std::iota(order.begin(), order.end(), 0);
  const auto size_of = [&](int32_t i) { return bytes[static_cast<size_t>(i)]; };
  std::stable_sort(order.begin(), order.end(),
                   [&](int32_t a, int32_t b) { return size_of(a) > size_of(b); });
  using Load = std::pair<int64_t, int>;  // bytes so far, rank: ties go to the lowest rank
  std::priority_queue<Load, std::vector<Load>, std::greater<>> loads;
  for (int r = 0; r < ranks; ++r) loads.emplace(0, r);
  std::vector<int32_t> share;
  for (const int32_t i : order) {
    const auto [load, least] = loads.top();
    loads.pop();
    if (least == rank) share.push_back(i);
    loads.emplace(load + size_of(i), least);
  }
  std::sort(share.begin(), share.end());
  return share;
}

}  // namespace amur
