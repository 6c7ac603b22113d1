#include "src/train/evaluation/ranking.h"

#include <algorithm>
#include <cmath>
#include <functional>

#include "kernels/gemm.h"

namespace amur {
namespace {

double discounted_gain(std::span<const int32_t> relevance, size_t depth) {
  double sum = 0;
  for (size_t i = 0; i < std::min(depth, relevance.size()); ++i)
    sum += std::max(relevance[i], 0) / std::log2(2.0 + static_cast<double>(i));
  return sum;
}

}  // namespace

void ranking_metrics(std::span<const int32_t> ranked, std::span<const int32_t> judged,
                     std::span<double> metrics) {
  std::vector<int32_t> ideal(judged.begin(), judged.end());
  std::sort(ideal.begin(), ideal.end(), std::greater<>());
  const auto relevant = static_cast<double>(
      std::count_if(ideal.begin(), ideal.end(), [](int32_t r) { return r > 0; }));
  // Relevant documents and precision at their places, summed, among the first k; the first place.
  const auto found = [&](size_t k) {
    return static_cast<double>(std::count_if(
        ranked.begin(), ranked.begin() + static_cast<long>(std::min(k, ranked.size())),
        [](int32_t r) { return r > 0; }));
  };
  const auto precisions = [&](size_t k) {
    double sum = 0, hits = 0;
    for (size_t i = 0; i < std::min(k, ranked.size()); ++i)
      if (ranked[i] > 0) sum += ++hits / static_cast<double>(i + 1);
    return sum;
  };
  const auto first = std::find_if(ranked.begin(), ranked.end(), [](int32_t r) { return r > 0; });
  const auto place = first - ranked.begin() + 1;
  const std::array<double, kRankingMetrics.size()> values = {
      discounted_gain(ranked, 10) / discounted_gain(ideal, 10),
      precisions(10) / relevant,
      precisions(100) / relevant,
      first != ranked.end() && place <= 10 ? 1.0 / static_cast<double>(place) : 0.0,
      found(1) > 0 ? 1.0 : 0.0,
      found(5) > 0 ? 1.0 : 0.0,
      found(10) > 0 ? 1.0 : 0.0,
      found(1),
      found(5) / 5,
      found(10) / 10,
      found(1) / relevant,
      found(5) / relevant,
      found(10) / relevant,
      found(100) / relevant};
  std::copy(values.begin(), values.end(), metrics.begin());
}

TopDocuments::TopDocuments(ConstTensorView queries, std::span<const int32_t> tie_order,
                           std::span<const int32_t> left_out, const Communicator& world)
    : queries_(queries),
      tie_order_(tie_order),
      left_out_(left_out),
      rank_(world.rank()),
      ranks_(world.size()),
      best_(static_cast<size_t>(queries.rows())) {}

bool TopDocuments::better(const Hit& a, const Hit& b) const {
  if (a.score != b.score) return a.score > b.score;
  return tie_order_[static_cast<size_t>(a.document)] < tie_order_[static_cast<size_t>(b.document)];
}

void TopDocuments::add(ConstTensorView documents, int64_t first) {
  const auto order = [this](const Hit& a, const Hit& b) { return better(a, b); };
  const int64_t n = queries_.rows(), rows = documents.rows();
  Tensor scores({kBlock, rows}, queries_.dtype());
  for (int64_t start = rank_ * kBlock; start < n; start += ranks_ * kBlock) {
    const int64_t count = std::min(kBlock, n - start);
    TensorView tile = scores.view().slice(0, count);
    gemm(Transpose::no, Transpose::yes, 1, queries_.slice(start, count), documents, 0, tile);
    dispatch_f32_f64(tile.dtype(), "TopDocuments", [&]<class T>() {
      for (int64_t q = 0; q < count; ++q) {
        const T* row = tile.as<T>() + q * rows;
        const int64_t own = left_out_[static_cast<size_t>(start + q)] - first;
        std::vector<Hit>& best = best_[static_cast<size_t>(start + q)];
        for (int64_t d = 0; d < rows; ++d) {
          const Hit hit{static_cast<double>(row[d]), static_cast<int32_t>(first + d)};
          const bool full = std::ssize(best) == kRankingDepth;
          if (d == own || (full && !better(hit, best.front()))) continue;
          if (full) {
            std::pop_heap(best.begin(), best.end(), order);
            best.pop_back();
          }
          best.push_back(hit);
          std::push_heap(best.begin(), best.end(), order);
        }
      }
    });
  }
}

std::vector<Hit> TopDocuments::of(int64_t query) const {
  std::vector<Hit> hits = best_[static_cast<size_t>(query)];
  std::sort(hits.begin(), hits.end(), [this](const Hit& a, const Hit& b) { return better(a, b); });
  return hits;
}

}  // namespace amur
