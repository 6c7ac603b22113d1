// Figures of evaluations against what pytrec_eval, sentence-transformers, SciPy and scikit-learn
// say of the same numbers (evaluation_reference.py), and their independence of the number of ranks.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>

#include "comm/process_grid.h"
#include "comm/runtime.h"
#include "src/core/random.h"
#include "src/train/evaluation/classification.h"
#include "src/train/evaluation/ranking.h"
#include "src/train/evaluation/sts.h"
#include "tests/support/mpi_runtime.h"

namespace amur {
namespace {

using nlohmann::json;

const json& reference() {
  static const json all = json::parse(std::ifstream(AMUR_EVALUATION_REFERENCE));
  return all;
}

Tensor matrix(const json& rows, DType dtype) {
  const auto width = static_cast<int64_t>(rows[0].size());
  Tensor t({std::ssize(rows), width}, dtype);
  dispatch_f32_f64(dtype, "matrix", [&]<class T>() {
    T* to = t.as<T>();
    for (const json& row : rows)
      for (const json& value : row) *to++ = value.get<T>();
  });
  return t;
}

// All ranks together, and one alone.
struct Grid {
  ProcessGrid grid{test_runtime(), {test_runtime().size(), 1}};
  Communicator& all = grid.dp();
  Communicator& alone = grid.tp();
};

// Metrics of every query [queries][metrics], the documents coming in windows of this many.
std::vector<std::vector<double>> metrics_of(const json& set, int64_t window, Communicator& world,
                                            bool ties_by_place = false) {
  const Tensor queries = matrix(set["queries"], DType::f32);
  const Tensor documents = matrix(set["documents"], DType::f32);
  const int64_t n = queries.shape()[0], m = documents.shape()[0];
  std::vector<std::string> ids;
  for (int64_t d = 0; d < m; ++d) ids.push_back(fmt::format("d{}", d));
  std::vector<int32_t> tie_order(ids.size());
  for (size_t d = 0; d < ids.size(); ++d)
    tie_order[d] = ties_by_place
                       ? static_cast<int32_t>(d)
                       : static_cast<int32_t>(std::count_if(
                             ids.begin(), ids.end(), [&](auto& other) { return other > ids[d]; }));
  const std::vector<int32_t> left_out(static_cast<size_t>(n), -1);
  TopDocuments top(queries, tie_order, left_out, world);
  for (int64_t first = 0; first < m; first += window)
    top.add(documents.view().slice(first, std::min(window, m - first)), first);

  constexpr auto kMetrics = static_cast<int64_t>(kRankingMetrics.size());
  Tensor values = Tensor::zeros({n, kMetrics}, DType::f64);
  for (int64_t q = 0; q < n; ++q) {
    if (!top.mine(q)) continue;
    const json& judged = set["qrels"][fmt::format("q{}", q)];
    std::vector<int32_t> ranked, all;
    for (const Hit& hit : top.of(q))
      ranked.push_back(judged.value(ids[static_cast<size_t>(hit.document)], 0));
    for (const auto& item : judged.items()) all.push_back(item.value());
    ranking_metrics(ranked, all, {values.as<double>() + q * kMetrics, kRankingMetrics.size()});
  }
  world.all_reduce(values, ReduceOp::sum);
  std::vector<std::vector<double>> found;
  for (int64_t q = 0; q < n; ++q)
    found.emplace_back(values.as<double>() + q * kMetrics,
                       values.as<double>() + (q + 1) * kMetrics);
  return found;
}

double largest_difference(const std::vector<std::vector<double>>& found, const json& trec) {
  double largest = 0;
  for (size_t k = 0; k < kRankingMetrics.size(); ++k)
    for (size_t q = 0; q < found.size(); ++q)
      largest =
          std::max(largest, std::abs(found[q][k] - trec[kRankingMetrics[k]][q].get<double>()));
  return largest;
}

TEST(EvaluationTasks, RankingsAreThoseOfTrecEval) {
  Grid grid;
  for (const char* name : {"graded", "binary"}) {
    const json& set = reference()["rankings"][name];
    const auto whole = metrics_of(set, 1000, grid.alone);
    EXPECT_LT(largest_difference(whole, set["trec"]), 1e-12) << name;
    // The same bits on any number of ranks. Products are exact here, so windows do not matter.
    EXPECT_EQ(metrics_of(set, 1000, grid.all), whole) << name;
    EXPECT_EQ(metrics_of(set, 17, grid.all), whole) << name;
  }
  // Equal scores are there, and their order matters.
  const json& graded = reference()["rankings"]["graded"];
  EXPECT_GT(largest_difference(metrics_of(graded, 1000, grid.all, true), graded["trec"]), 0.01);
}

TEST(EvaluationTasks, RankingsAreThoseOfSentenceTransformers) {
  Grid grid;
  const json& set = reference()["rankings"]["binary"];
  const auto found = metrics_of(set, 40, grid.all);
  for (size_t k = 0; k < kRankingMetrics.size(); ++k) {
    double sum = 0;
    for (const auto& query : found) sum += query[k];
    EXPECT_NEAR(sum / static_cast<double>(found.size()),
                set["sentence_transformers"][kRankingMetrics[k]].get<double>(), 1e-12)
        << kRankingMetrics[k];
  }
}

TEST(EvaluationTasks, RankingByHand) {
  // Relevance 2 at place 2, 1 at place 4; a third relevant one was not found.
  std::vector<double> got(kRankingMetrics.size());
  ranking_metrics(std::vector<int32_t>{0, 2, 0, 1, 0}, std::vector<int32_t>{1, 0, 2, 1, 0}, got);
  const double dcg = 2 / std::log2(3.0) + 1 / std::log2(5.0);
  const double ideal = 2 + 1 / std::log2(3.0) + 1 / std::log2(4.0);
  const double map = (1.0 / 2 + 2.0 / 4) / 3;
  const std::vector<double> want = {dcg / ideal, map,     map, 0.5, 0,       1,       1,
                                    0,           2.0 / 5, 0.2, 0,   2.0 / 3, 2.0 / 3, 2.0 / 3};
  for (size_t k = 0; k < want.size(); ++k)
    EXPECT_NEAR(got[k], want[k], 1e-15) << kRankingMetrics[k];
  // sentence-transformers' map@k of 12 relevant documents, all in front, is 1; trec_eval's is not.
  ranking_metrics(std::vector<int32_t>(12, 1), std::vector<int32_t>(12, 1), got);
  EXPECT_NEAR(got[1], 10.0 / 12, 1e-15);
  EXPECT_NEAR(got[2], 1, 1e-15);
}

TEST(EvaluationTasks, ADocumentMayBeLeftOut) {
  Grid grid;
  Tensor queries = Tensor::zeros({1, 1}, DType::f32), documents = Tensor::zeros({3, 1}, DType::f32);
  queries.as<float>()[0] = 1;
  for (int d = 0; d < 3; ++d) documents.as<float>()[d] = static_cast<float>(d);
  const std::vector<int32_t> order = {0, 1, 2};
  for (int32_t out : {-1, 2}) {
    const std::vector<int32_t> left_out = {out};
    TopDocuments top(queries, order, left_out, grid.alone);
    top.add(documents.view().slice(0, 2), 0);
    top.add(documents.view().slice(2, 1), 2);
    EXPECT_EQ(top.of(0).front().document, out == 2 ? 1 : 2);
    EXPECT_EQ(top.of(0).size(), out == 2 ? 2U : 3U);
  }
}

TEST(EvaluationTasks, BootstrapEqualsAnotherOne) {
  Grid grid;
  const json& set = reference()["means"];
  const Tensor values = matrix(json::array({set["values"]}), DType::f64);
  const ConstTensorView column = values.view().reshape({std::ssize(set["values"]), 1});
  const Interval found = bootstrap_means(column, grid.all).at(0);
  EXPECT_NEAR(found.low, set["interval"][0].get<double>(), 1e-12);
  EXPECT_NEAR(found.high, set["interval"][1].get<double>(), 1e-12);
  // SciPy's own draws, 20,000 of them: as near as 1,000 come.
  const double width = found.high - found.low;
  EXPECT_NEAR(found.low, set["scipy"][0].get<double>(), 0.06 * width);
  EXPECT_NEAR(found.high, set["scipy"][1].get<double>(), 0.06 * width);
  const Interval alone = bootstrap_means(column, grid.alone).at(0);
  EXPECT_EQ(found.low, alone.low);
  EXPECT_EQ(found.high, alone.high);
  // Other items, another interval: a constant has none to speak of.
  const Tensor same = Tensor::zeros({60, 1}, DType::f64);
  EXPECT_EQ(bootstrap_means(same, grid.all).at(0).high, 0);
}

TEST(EvaluationTasks, CorrelationsAreThoseOfSciPy) {
  Grid grid;
  const json& set = reference()["correlation"];
  const auto a = set["a"].get<std::vector<double>>(), b = set["b"].get<std::vector<double>>();
  const std::vector<Score> found = correlations(a, b, grid.all);
  for (const Score& score : found) {
    EXPECT_NEAR(score.value, set[score.name][0].get<double>(), 1e-13) << score.name;
    EXPECT_NEAR(score.interval.low, set[score.name][1].get<double>(), 1e-12) << score.name;
    EXPECT_NEAR(score.interval.high, set[score.name][2].get<double>(), 1e-12) << score.name;
  }
  // By hand: ranks 1 2.5 2.5 4 against 1 2 3 4.
  const std::vector<double> tied = {1, 2, 2, 9}, rising = {1, 2, 3, 4};
  EXPECT_NEAR(correlations(tied, rising, grid.all)[0].value, 4.5 / std::sqrt(4.5 * 5), 1e-15);
  // A constant list correlates with nothing.
  const std::vector<double> constant(4, 1.0);
  EXPECT_TRUE(std::isnan(correlations(constant, rising, grid.all)[0].value));
}

// Classes of one covariance around different means.
struct Gaussians {
  static constexpr int64_t kClasses = 3, kWidth = 5;
  static constexpr double kMeans[kClasses][kWidth] = {
      {0, 0, 0, 0, 0}, {1.5, 0, 0.5, 0, 0}, {0, 0.8, 0, -0.4, 0}};
  static constexpr double kShares[kClasses] = {0.5, 0.3, 0.2};

  // x = mean + A g, with A such that the nearest mean is a bad guess.
  static double mix(int64_t i, int64_t k) { return i == k ? 1.0 + 2.0 * (i == 0) : 0.5 * (k < i); }

  explicit Gaussians(int64_t n, uint64_t seed) : rows({n, kWidth}, DType::f32) {
    const RandomKey key = RandomKey(seed).fold(static_cast<uint64_t>(RandomPurpose::probe));
    for (int64_t i = 0; i < n; ++i) {
      const double u = key.uniform(static_cast<uint64_t>(8 * i));
      const int32_t label = u < kShares[0] ? 0 : u < kShares[0] + kShares[1] ? 1 : 2;
      labels.push_back(label);
      double g[kWidth];
      for (int64_t k = 0; k < kWidth; ++k) g[k] = key.normal(static_cast<uint64_t>(8 * i + 1 + k));
      for (int64_t k = 0; k < kWidth; ++k) {
        double x = kMeans[label][k];
        for (int64_t j = 0; j < kWidth; ++j) x += mix(k, j) * g[j];
        rows.as<float>()[i * kWidth + k] = static_cast<float>(x);
      }
    }
  }
  // Share that the best of all classifiers, or with `white` false the nearest mean, gets right.
  double by_the_truth(bool white) const {
    int64_t right = 0;
    for (size_t i = 0; i < labels.size(); ++i) {
      double best = -1e300;
      int32_t guess = 0;
      for (int32_t c = 0; c < kClasses; ++c) {
        double z[kWidth], squares = 0;
        for (int64_t k = 0; k < kWidth; ++k) {  // forward substitution: A is lower triangular
          z[k] = static_cast<double>(rows.as<float>()[static_cast<int64_t>(i) * kWidth + k]) -
                 kMeans[c][k];
          for (int64_t j = 0; white && j < k; ++j) z[k] -= mix(k, j) * z[j];
          if (white) z[k] /= mix(k, k);
          squares += z[k] * z[k];
        }
        const double value = std::log(kShares[c]) - squares / 2;
        if (value > best) {
          best = value;
          guess = c;
        }
      }
      right += guess == labels[i];
    }
    return static_cast<double>(right) / static_cast<double>(labels.size());
  }

  Tensor rows;
  std::vector<int32_t> labels;
};

ClassMoments moments_of(ConstTensorView rows, const std::vector<int32_t>& labels, int64_t classes,
                        Communicator& world) {
  ClassMoments moments(classes, rows.columns());
  const int64_t half = rows.rows() / 2;
  moments.add(rows.slice(0, half), std::span(labels).first(static_cast<size_t>(half)), world);
  moments.add(rows.slice(half, rows.rows() - half),
              std::span(labels).subspan(static_cast<size_t>(half)), world);
  moments.reduce(world);
  return moments;
}

double accuracy(const std::vector<int32_t>& guesses, const std::vector<int32_t>& labels) {
  int64_t right = 0;
  for (size_t i = 0; i < labels.size(); ++i) right += guesses[i] == labels[i];
  return static_cast<double>(right) / static_cast<double>(labels.size());
}

TEST(EvaluationTasks, ClassifierIsLinearDiscriminantAnalysis) {
  Grid grid;
  const json& set = reference()["classifier"];
  const Tensor rows = matrix(set["rows"], DType::f32);
  const auto labels = set["labels"].get<std::vector<int32_t>>();
  const LinearClassifier found = closed_form_classifier(moments_of(rows, labels, 3, grid.all));
  EXPECT_EQ(found.dimensions, 4);
  for (size_t c = 0; c < 3; ++c) {
    EXPECT_NEAR(found.bias[c], set["bias"][c].get<double>(), 1e-10);
    for (size_t k = 0; k < 4; ++k)
      EXPECT_NEAR(found.weight.as<double>()[c * 4 + k], set["weight"][c][k].get<double>(), 1e-10);
  }
}

TEST(EvaluationTasks, ClassifierReachesTheBestAccuracy) {
  Grid grid;
  const Gaussians train(20000, 1), test(20000, 2);
  const ClassMoments moments = moments_of(train.rows, train.labels, 3, grid.all);
  const double found = accuracy(classify(closed_form_classifier(moments), test.rows), test.labels);
  EXPECT_NEAR(found, test.by_the_truth(true), 0.01);
  EXPECT_LT(test.by_the_truth(false), found - 0.02);  // it takes the covariance

  // The same bits of one rank alone.
  const ClassMoments alone = moments_of(train.rows, train.labels, 3, grid.alone);
  EXPECT_EQ(moments.counts, alone.counts);
  EXPECT_TRUE(std::equal(moments.sums.as<double>(), moments.sums.as<double>() + 15,
                         alone.sums.as<double>()));
  EXPECT_TRUE(std::equal(moments.second.as<double>(), moments.second.as<double>() + 25,
                         alone.second.as<double>()));
}

TEST(EvaluationTasks, ClassifierIgnoresLinearMaps) {
  Grid grid;
  const Gaussians train(3000, 3), test(3000, 4);
  constexpr int64_t kFrom = Gaussians::kWidth;
  // An invertible map, and one that repeats coordinates and adds a constant one.
  const auto mapped = [&](const Tensor& rows, int64_t width) {
    Tensor to({rows.shape()[0], width}, DType::f64);
    for (int64_t i = 0; i < rows.shape()[0]; ++i)
      for (int64_t k = 0; k < width; ++k) {
        const float* x = rows.as<float>() + i * kFrom;
        double& y = to.as<double>()[i * width + k];
        if (width == kFrom)
          y = static_cast<double>(x[k]) + 3.0 * static_cast<double>(x[(k + 1) % kFrom]);
        else
          y = k < 2 * kFrom ? static_cast<double>(x[k % kFrom]) / static_cast<double>(1 + k) : 7.0;
      }
    return to;
  };
  const auto guesses = [&](int64_t width) {
    const LinearClassifier c =
        closed_form_classifier(moments_of(mapped(train.rows, width), train.labels, 3, grid.all));
    EXPECT_EQ(c.dimensions, kFrom);
    return classify(c, mapped(test.rows, width));
  };
  const auto plain = classify(
      closed_form_classifier(moments_of(train.rows, train.labels, 3, grid.all)), test.rows);
  EXPECT_EQ(guesses(kFrom), plain);
  EXPECT_EQ(guesses(2 * kFrom + 1), plain);
}

TEST(EvaluationTasks, ClassesWithoutScatterAreRefused) {
  Grid grid;
  Tensor rows = Tensor::zeros({2, 2}, DType::f32);
  rows.as<float>()[0] = rows.as<float>()[3] = 1;
  const ClassMoments moments = moments_of(rows, {0, 1}, 2, grid.all);
  EXPECT_THROW(closed_form_classifier(moments), UsageError);
}

}  // namespace
}  // namespace amur
