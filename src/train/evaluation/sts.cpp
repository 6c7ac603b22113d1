#include "src/train/evaluation/sts.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <string_view>

#include "src/train/agreement.h"
#include "src/train/evaluation/input.h"
#include "src/train/stopwatch.h"
#include "src/train/text_windows.h"

namespace amur {
namespace {

// Where value i is there copies[i] times.
using Copies = std::span<const int32_t>;

double pearson(std::span<const double> a, std::span<const double> b, Copies copies) {
  double n = 0, mean_a = 0, mean_b = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    n += copies[i];
    mean_a += copies[i] * a[i];
    mean_b += copies[i] * b[i];
  }
  mean_a /= n;
  mean_b /= n;
  double aa = 0, bb = 0, ab = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    const double x = a[i] - mean_a, y = b[i] - mean_b;
    aa += copies[i] * x * x;
    bb += copies[i] * y * y;
    ab += copies[i] * x * y;
  }
  return ab / std::sqrt(aa * bb);  // 0/0 where one is constant
}

// Sorted once, ranked for any resample.
class Ranked {
 public:
  explicit Ranked(std::span<const double> values) : values_(values), order_(values.size()) {
    std::iota(order_.begin(), order_.end(), size_t{0});
    std::sort(order_.begin(), order_.end(),
              [&](size_t i, size_t j) { return values[i] < values[j]; });
  }
  // From 1; equal values share the mean of their ranks.
  std::vector<double> ranks(Copies copies) const {
    std::vector<double> ranks(values_.size());
    double before = 0;
    for (size_t first = 0; first < order_.size();) {
      size_t end = first;
      double here = 0;
      for (; end < order_.size() && values_[order_[end]] == values_[order_[first]]; ++end)
        here += copies[order_[end]];
      for (; first < end; ++first) ranks[order_[first]] = before + 0.5 * (here + 1);
      before += here;
    }
    return ranks;
  }

 private:
  std::span<const double> values_;
  std::vector<size_t> order_;
};

}  // namespace

std::vector<Score> correlations(std::span<const double> a, std::span<const double> b,
                                Communicator& world) {
  AMUR_CHECK(a.size() == b.size() && a.size() >= 2, "{} and {} values", a.size(), b.size());
  const Ranked sorted_a(a), sorted_b(b);
  const Statistic both = [&](Copies copies, std::span<double> out) {
    out[0] = pearson(sorted_a.ranks(copies), sorted_b.ranks(copies), copies);
    out[1] = pearson(a, b, copies);
  };
  std::vector<double> values(2);
  both(std::vector<int32_t>(a.size(), 1), values);
  const std::vector<Interval> intervals = bootstrap(std::ssize(a), 2, both, world);
  return {{"spearman", values[0], intervals[0]}, {"pearson", values[1], intervals[1]}};
}

TaskScores evaluate_sts(const StsOptions& options, TextEmbedder& embedder, Communicator& world) {
  Stopwatch watch;
  TextBytes text;
  std::vector<std::string_view> sides;  // of pair i: 2i and 2i + 1
  std::string scores;                   // doubles, as they travel
  read_on_first_rank(world, [&] {
    text = TextBytes::open(options.file);
    read_lines(text, options.file, [&](std::string_view line, size_t, int64_t number) {
      const auto fields = tsv_fields(line);
      double score = 0;
      if (fields.size() != 3)
        return fmt::format("{} columns, wanted 3: text, text, score", fields.size());
      if (!parse_number(fields[2], score)) {
        if (number == 1) return std::string();  // the heading
        return fmt::format("the score '{}' is not a number", fields[2]);
      }
      sides.insert(sides.end(), fields.begin(), fields.begin() + 2);
      scores.append(reinterpret_cast<const char*>(&score), sizeof(score));
      return std::string();
    });
    if (sides.size() < 4)
      throw UsageError("{} holds {} pairs; correlations need two", options.file, sides.size() / 2);
  });
  world.broadcast(scores, 0);
  std::vector<double> gold(scores.size() / sizeof(double)), cosines;
  std::copy_n(scores.data(), scores.size(), reinterpret_cast<char*>(gold.data()));
  if (std::all_of(gold.begin(), gold.end(), [&](double g) { return g == gold[0]; }))
    throw UsageError("{}: all scores are {}; correlations need two different ones", options.file,
                     gold[0]);

  TextStream stream = numbered_texts(2 * std::ssize(gold), [&](int64_t i) {
    return fmt::format("{}{}", options.prefix, sides[static_cast<size_t>(i)]);
  });
  stream.group = 2;
  embed_windows(stream, options.tower, embedder, world, [&](const TextWindow& window) {
    const int64_t width = window.rows.columns();
    dispatch_f32_f64(window.rows.dtype(), "evaluate_sts", [&]<class T>() {
      for (int64_t i = 0; i < window.rows.rows(); i += 2) {
        const T* a = window.rows.as<T>() + i * width;
        double dot = 0;
        for (int64_t k = 0; k < width; ++k)
          dot += static_cast<double>(a[k]) * static_cast<double>(a[width + k]);
        cosines.push_back(dot);
      }
    });
  });
  TaskScores result;
  result.task = "sts";
  result.set = options.file;
  result.scores = correlations(cosines, gold, world);
  result.counts = {{"pairs", std::ssize(gold)}};
  result.seconds = watch.elapsed();
  return result;
}

}  // namespace amur
