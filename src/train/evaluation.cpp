#include "src/train/evaluation.h"

#include <algorithm>
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

struct Sums {
  double recall_1 = 0, recall_5 = 0, recall_10 = 0, mrr = 0, ndcg_10 = 0;
};

template <class T>
void add_query(const T* scores, int64_t documents, const std::vector<int32_t>& right, Sums& sums) {
  if (right.empty()) return;
  double best = std::numeric_limits<double>::infinity(), gain = 0, ideal = 0;
  for (size_t r = 0; r < right.size(); ++r) {
    const double rank = expected_rank(scores, documents, scores[right[r]]);
    best = std::min(best, rank);
    if (rank <= 10) gain += 1 / std::log2(1 + rank);
    if (r < 10) ideal += 1 / std::log2(2.0 + static_cast<double>(r));
  }
  sums.recall_1 += best <= 1;
  sums.recall_5 += best <= 5;
  sums.recall_10 += best <= 10;
  sums.mrr += 1 / best;
  sums.ndcg_10 += gain / ideal;
}

nlohmann::ordered_json json_of(const RetrievalScores& s) {
  return {{"recall@1", s.recall_1},   {"recall@5", s.recall_5},
          {"recall@10", s.recall_10}, {"mrr", s.mrr},
          {"ndcg@10", s.ndcg_10},     {"queries", s.queries},
          {"documents", s.documents}};
}

}  // namespace

RetrievalScores score_retrieval(ConstTensorView queries, ConstTensorView documents,
                                const std::vector<std::vector<int32_t>>& right,
                                Communicator& world) {
  const int64_t n = queries.rows(), m = documents.rows();
  AMUR_CHECK(static_cast<int64_t>(right.size()) == n, "{} answers for {} queries", right.size(), n);
  const int64_t block = std::clamp<int64_t>(m > 0 ? kBlockScores / m : 1, 1, kBlockQueries);
  const int64_t blocks = (n + block - 1) / block;
  Tensor scores({block, m}, queries.dtype());
  // One partial result a block, summed in block order on every rank: the same bits at any grid.
  constexpr int64_t kMetrics = 5;
  Tensor partial = Tensor::zeros({blocks, kMetrics}, DType::f64);
  for (int64_t b = world.rank(); b < blocks; b += world.size()) {
    const int64_t first = b * block, count = std::min(block, n - first);
    TensorView tile = scores.view().slice(0, count);
    gemm(Transpose::no, Transpose::yes, 1, queries.slice(first, count), documents, 0, tile);
    Sums sums;
    dispatch_f32_f64(tile.dtype(), "score_retrieval", [&]<class T>() {
      for (int64_t i = 0; i < count; ++i)
        add_query(tile.as<T>() + i * m, m, right[static_cast<size_t>(first + i)], sums);
    });
    double* out = partial.as<double>() + b * kMetrics;
    out[0] = sums.recall_1;
    out[1] = sums.recall_5;
    out[2] = sums.recall_10;
    out[3] = sums.mrr;
    out[4] = sums.ndcg_10;
  }
  world.all_reduce(partial, ReduceOp::sum);
  double total[kMetrics] = {};
  for (int64_t b = 0; b < blocks; ++b)
    for (int64_t k = 0; k < kMetrics; ++k) total[k] += partial.as<double>()[b * kMetrics + k];
  const auto answered =
      std::count_if(right.begin(), right.end(), [](auto& r) { return !r.empty(); });
  const double scale = answered > 0 ? 1.0 / static_cast<double>(answered) : 0.0;
  return {total[0] * scale,
          total[1] * scale,
          total[2] * scale,
          total[3] * scale,
          total[4] * scale,
          answered,
          m};
}

Evaluation evaluate(TextEmbedder& embedder, const EvalSet& set, Communicator& world) {
  Stopwatch watch;
  const Tensor queries = embedder.embed(set.queries, 0);
  const Tensor documents = embedder.embed(set.documents, 1);
  std::vector<std::vector<int32_t>> asked(set.documents.size());  // queries of each document
  for (size_t q = 0; q < set.right.size(); ++q)
    for (int32_t d : set.right[q]) asked[static_cast<size_t>(d)].push_back(static_cast<int32_t>(q));
  Evaluation result;
  result.name = set.name;
  result.query_to_document = score_retrieval(queries, documents, set.right, world);
  result.document_to_query = score_retrieval(documents, queries, asked, world);
  result.seconds = watch.elapsed();
  return result;
}

std::string to_json(const Evaluation& e) {
  nlohmann::ordered_json j;
  j["set"] = e.name;
  j["query_to_document"] = json_of(e.query_to_document);
  j["document_to_query"] = json_of(e.document_to_query);
  j["seconds"] = e.seconds;
  return j.dump(2);
}

std::string to_table(const Evaluation& e) {
  std::string text = fmt::format("{:<20} {:>8} {:>8} {:>8} {:>8} {:>8} {:>9} {:>10}\n", e.name,
                                 "R@1", "R@5", "R@10", "MRR", "nDCG@10", "queries", "documents");
  for (const auto& [name, s] : {std::pair{"query -> document", e.query_to_document},
                                std::pair{"document -> query", e.document_to_query}})
    text +=
        fmt::format("{:<20} {:8.4f} {:8.4f} {:8.4f} {:8.4f} {:8.4f} {:9} {:10}\n", name, s.recall_1,
                    s.recall_5, s.recall_10, s.mrr, s.ndcg_10, s.queries, s.documents);
  return text;
}

}  // namespace amur
