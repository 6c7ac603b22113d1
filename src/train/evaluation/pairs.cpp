#include "src/train/evaluation/pairs.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>

#include "kernels/gemm.h"
#include "src/train/stopwatch.h"

namespace amur {
namespace {

constexpr int64_t kBlockQueries = 128;
constexpr int64_t kBlockScores = int64_t{16} << 20;

// Expected place of a document of score `own` among `scores`.
template <class T>
double expected_rank(const T* scores, int64_t count, T own) {
  const T tolerance = static_cast<T>(1e-6);
  int64_t better = 0, reached = 0;
  for (int64_t j = 0; j < count; ++j) {
    better += scores[j] > own + tolerance;
    reached += scores[j] >= own - tolerance;
  }
  // `reached` counts the document itself.
  return 1.0 + static_cast<double>(better) + 0.5 * static_cast<double>(reached - better - 1);
}

// In the order of RetrievalScores.
constexpr std::array kMetrics = {"recall@1", "recall@5", "recall@10", "mrr", "ndcg@10"};
constexpr auto kMetricCount = static_cast<int64_t>(kMetrics.size());

template <class T>
void score_query(const T* scores, int64_t documents, const std::vector<int32_t>& right,
                 double* metrics) {
  double best = std::numeric_limits<double>::infinity(), gain = 0, ideal = 0;
  for (size_t r = 0; r < right.size(); ++r) {
    const double rank = expected_rank(scores, documents, scores[right[r]]);
    best = std::min(best, rank);
    if (rank <= 10) gain += 1 / std::log2(1 + rank);
    if (r < 10) ideal += 1 / std::log2(2.0 + static_cast<double>(r));
  }
  metrics[0] = best <= 1;
  metrics[1] = best <= 5;
  metrics[2] = best <= 10;
  metrics[3] = 1 / best;
  metrics[4] = gain / ideal;
}

nlohmann::ordered_json json_of(const RetrievalScores& s) {
  nlohmann::ordered_json json;
  const std::array values = {s.recall_1, s.recall_5, s.recall_10, s.mrr, s.ndcg_10};
  for (size_t k = 0; k < kMetrics.size(); ++k) json[kMetrics[k]] = values[k];
  json["queries"] = s.queries;
  json["documents"] = s.documents;
  return json;
}

nlohmann::ordered_json intervals_of(const RetrievalScores& s) {
  nlohmann::ordered_json json;
  for (size_t k = 0; k < kMetrics.size(); ++k)
    json[kMetrics[k]] = {s.intervals[k].low, s.intervals[k].high};
  return json;
}

}  // namespace

RetrievalScores score_retrieval(ConstTensorView queries, ConstTensorView documents,
                                const std::vector<std::vector<int32_t>>& right, Communicator& world,
                                Intervals intervals) {
  const int64_t n = queries.rows(), m = documents.rows();
  AMUR_CHECK(static_cast<int64_t>(right.size()) == n, "{} answers for {} queries", right.size(), n);
  std::vector<int64_t> row(right.size());  // of an answered query, in `values`
  int64_t answered = 0;
  for (size_t i = 0; i < right.size(); ++i) row[i] = right[i].empty() ? -1 : answered++;
  const int64_t block = std::clamp<int64_t>(m > 0 ? kBlockScores / m : 1, 1, kBlockQueries);
  const int64_t blocks = (n + block - 1) / block;
  Tensor scores({block, m}, queries.dtype());
  // A row of metrics a query, summed in query order on every rank: the same bits at any grid.
  Tensor values = Tensor::zeros({answered, kMetricCount}, DType::f64);
  for (int64_t b = world.rank(); b < blocks; b += world.size()) {
    const int64_t first = b * block, count = std::min(block, n - first);
    TensorView tile = scores.view().slice(0, count);
    gemm(Transpose::no, Transpose::yes, 1, queries.slice(first, count), documents, 0, tile);
    dispatch_f32_f64(tile.dtype(), "score_retrieval", [&]<class T>() {
      for (int64_t i = 0; i < count; ++i) {
        const auto query = static_cast<size_t>(first + i);
        if (row[query] >= 0)
          score_query(tile.as<T>() + i * m, m, right[query],
                      values.as<double>() + row[query] * kMetricCount);
      }
    });
  }
  world.all_reduce(values, ReduceOp::sum);
  std::array<double, kMetrics.size()> mean = {};
  for (int64_t i = 0; i < answered; ++i)
    for (size_t k = 0; k < mean.size(); ++k)
      mean[k] += values.as<double>()[i * kMetricCount + static_cast<int64_t>(k)];
  for (double& value : mean) value /= static_cast<double>(std::max<int64_t>(answered, 1));
  RetrievalScores result{mean[0], mean[1], mean[2], mean[3], mean[4], answered, m, {}};
  if (intervals == Intervals::yes && answered > 0)
    result.intervals = bootstrap_means(values, world);
  return result;
}

Evaluation evaluate(TextEmbedder& embedder, const EvalSet& set, Communicator& world,
                    Intervals intervals) {
  Stopwatch watch;
  const Tensor queries = embedder.embed(set.queries, 0);
  const Tensor documents = embedder.embed(set.documents, 1);
  std::vector<std::vector<int32_t>> asked(set.documents.size());  // queries of each document
  for (size_t q = 0; q < set.right.size(); ++q)
    for (int32_t d : set.right[q]) asked[static_cast<size_t>(d)].push_back(static_cast<int32_t>(q));
  Evaluation result;
  result.name = set.name;
  result.query_to_document = score_retrieval(queries, documents, set.right, world, intervals);
  result.document_to_query = score_retrieval(documents, queries, asked, world, intervals);
  result.seconds = watch.elapsed();
  return result;
}

std::string to_json(const Evaluation& e) {
  nlohmann::ordered_json j;
  j["set"] = e.name;
  j["query_to_document"] = json_of(e.query_to_document);
  j["document_to_query"] = json_of(e.document_to_query);
  if (!e.query_to_document.intervals.empty() && !e.document_to_query.intervals.empty()) {
    j["confidence"] = 0.95;
    j["intervals"] = {{"query_to_document", intervals_of(e.query_to_document)},
                      {"document_to_query", intervals_of(e.document_to_query)}};
  }
  j["seconds"] = e.seconds;
  return j.dump(2);
}

std::string to_table(const Evaluation& e) {
  std::string text = fmt::format("{:<20} {:>8} {:>8} {:>8} {:>8} {:>8} {:>9} {:>10}\n", e.name,
                                 "R@1", "R@5", "R@10", "MRR", "nDCG@10", "queries", "documents");
  for (const auto& [name, s] : {std::pair{"query -> document", e.query_to_document},
                                std::pair{"document -> query", e.document_to_query}}) {
    text +=
        fmt::format("{:<20} {:8.4f} {:8.4f} {:8.4f} {:8.4f} {:8.4f} {:9} {:10}\n", name, s.recall_1,
                    s.recall_5, s.recall_10, s.mrr, s.ndcg_10, s.queries, s.documents);
    for (const auto& [side, end] :
         {std::pair{"  95 % from", &Interval::low}, std::pair{"         to", &Interval::high}}) {
      if (s.intervals.empty()) break;
      text += fmt::format("{:<20}", side);
      for (const Interval& interval : s.intervals) text += fmt::format(" {:8.4f}", interval.*end);
      text += '\n';
    }
  }
  return text;
}

}  // namespace amur
