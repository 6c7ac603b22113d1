// How far a figure of an evaluation would move with other queries of the same kind.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "comm/communicator.h"

namespace amur {

inline constexpr int64_t kResamples = 1000;

struct Interval {
  double low = 0, high = 0;
};

// From copies[i], how often item i was drawn (they sum up to the number of items), the figures of
// that resample.
using Statistic = std::function<void(std::span<const int32_t> copies, std::span<double> figures)>;

// 95 % intervals of `figures` statistics over `items` items, by the percentile bootstrap: the 2.5
// and 97.5 percentiles (interpolated linearly) over resamples of as many items drawn with
// replacement. Draw i of resample r is RandomKey(0).fold(bootstrap).fold(r).below(i, items), so the
// intervals depend on the data alone. Resamples in which a figure is not a number are left out; not
// a number where none is left. The ranks share the resamples. Collective.
std::vector<Interval> bootstrap(int64_t items, int64_t figures, const Statistic& statistic,
                                Communicator& world, int64_t resamples = kResamples);

// Of the column means of values [items, figures], f64, equal on all ranks.
std::vector<Interval> bootstrap_means(ConstTensorView values, Communicator& world,
                                      int64_t resamples = kResamples);

// A figure of an evaluation and its interval.
struct Score {
  std::string name;
  double value = 0;
  Interval interval;
};

// What one task found. Figures and counts keep their order.
struct TaskScores {
  std::string task, set;
  std::vector<Score> scores;
  std::vector<std::pair<std::string, int64_t>> counts;  // {"queries", 323}
  double seconds = 0;
};

// {"task": .., "set": .., "ndcg@10": 0.31, .., "queries": 323, .., "confidence": 0.95,
//  "intervals": {"ndcg@10": [0.28, 0.35], ..}, "seconds": ..}; null for what is not a number.
std::string to_json(const TaskScores& scores);
std::string to_table(const TaskScores& scores);

}  // namespace amur
