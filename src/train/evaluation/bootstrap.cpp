#include "src/train/evaluation/bootstrap.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>

#include "src/core/random.h"

namespace amur {
namespace {

// Of ascending values; between two of them on the straight line.
double percentile(const std::vector<double>& sorted, double share) {
  const double place = share * static_cast<double>(sorted.size() - 1);
  const auto below = static_cast<size_t>(place);
  const size_t above = std::min(below + 1, sorted.size() - 1);
  return sorted[below] + (place - static_cast<double>(below)) * (sorted[above] - sorted[below]);
}

}  // namespace

std::vector<Interval> bootstrap(int64_t items, int64_t figures, const Statistic& statistic,
                                Communicator& world, int64_t resamples) {
  const RandomKey all = RandomKey(0).fold(static_cast<uint64_t>(RandomPurpose::bootstrap));
  Tensor found = Tensor::zeros({resamples, figures}, DType::f64);
  std::vector<int32_t> copies(static_cast<size_t>(items));
  for (int64_t r = world.rank(); r < resamples; r += world.size()) {
    const RandomKey key = all.fold(static_cast<uint64_t>(r));
    std::fill(copies.begin(), copies.end(), 0);
    for (uint64_t i = 0; i < copies.size(); ++i) ++copies[key.below(i, copies.size())];
    statistic(copies, {found.as<double>() + r * figures, static_cast<size_t>(figures)});
  }
  world.all_reduce(found, ReduceOp::sum);

  std::vector<Interval> intervals;
  for (int64_t f = 0; f < figures; ++f) {
    std::vector<double> values;
    for (int64_t r = 0; r < resamples; ++r)
      if (const double value = found.as<double>()[r * figures + f]; std::isfinite(value))
        values.push_back(value);
    std::sort(values.begin(), values.end());
    constexpr double kNone = std::numeric_limits<double>::quiet_NaN();
    intervals.push_back(values.empty()
                            ? Interval{kNone, kNone}
                            : Interval{percentile(values, 0.025), percentile(values, 0.975)});
  }
  return intervals;
}

std::vector<Interval> bootstrap_means(ConstTensorView values, Communicator& world,
                                      int64_t resamples) {
  const int64_t items = values.rows(), figures = values.columns();
  const double* value = items > 0 ? values.as<double>() : nullptr;
  return bootstrap(
      items, figures,
      [=](std::span<const int32_t> copies, std::span<double> means) {
        for (int64_t i = 0; i < items; ++i)
          if (const int32_t n = copies[static_cast<size_t>(i)]; n != 0)
            for (int64_t f = 0; f < figures; ++f)
              means[static_cast<size_t>(f)] += n * value[i * figures + f];
        for (double& mean : means) mean /= static_cast<double>(items);
      },
      world, resamples);
}

std::string to_json(const TaskScores& scores) {
  nlohmann::ordered_json json = {{"task", scores.task}, {"set", scores.set}};
  nlohmann::ordered_json intervals;
  for (const Score& s : scores.scores) {
    json[s.name] = s.value;
    intervals[s.name] = {s.interval.low, s.interval.high};
  }
  for (const auto& [name, count] : scores.counts) json[name] = count;
  json["confidence"] = 0.95;
  json["intervals"] = intervals;
  json["seconds"] = scores.seconds;
  return json.dump(2);
}

std::string to_table(const TaskScores& scores) {
  std::string text = fmt::format("{} on {}", scores.task, scores.set);
  for (const auto& [name, count] : scores.counts) text += fmt::format(", {} {}", count, name);
  text += fmt::format("\n{:<14} {:>8}   95 % interval\n", "", "value");
  for (const Score& s : scores.scores)
    text += fmt::format("{:<14} {:8.4f}   {:.4f} .. {:.4f}\n", s.name, s.value, s.interval.low,
                        s.interval.high);
  return text;
}

}  // namespace amur
