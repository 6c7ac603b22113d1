// Retrieval metrics against plain loops, and their independence of the number of ranks.
#include <gtest/gtest.h>

#include <cmath>

#include "comm/process_grid.h"
#include "comm/runtime.h"
#include "src/train/evaluation/pairs.h"
#include "tests/support/mpi_runtime.h"

namespace amur {
namespace {

Tensor unit_rows(int64_t rows, int64_t width, uint64_t seed) {
  Tensor t({rows, width}, DType::f32);
  for (int64_t i = 0; i < rows; ++i) {
    double squares = 0;
    float* row = t.as<float>() + i * width;
    for (int64_t k = 0; k < width; ++k) {
      row[k] = static_cast<float>(RandomKey(seed).normal(static_cast<uint64_t>(i * width + k)));
      squares += row[k] * row[k];
    }
    for (int64_t k = 0; k < width; ++k) row[k] /= static_cast<float>(std::sqrt(squares));
  }
  return t;
}

TEST(Evaluation, EqualsPlainLoops) {
  Runtime& runtime = test_runtime();
  ProcessGrid grid(runtime, {runtime.size(), 1});
  constexpr int64_t kQueries = 300, kDocuments = 211, kWidth = 8;
  const Tensor queries = unit_rows(kQueries, kWidth, 1), documents = unit_rows(kDocuments, kWidth, 2);
  std::vector<std::vector<int32_t>> right(kQueries);
  for (int64_t i = 0; i < kQueries; ++i) {
    if (i % 50 == 7) continue;  // no answer: not counted
    right[static_cast<size_t>(i)].push_back(static_cast<int32_t>(i % kDocuments));
    if (i % 3 == 0) right[static_cast<size_t>(i)].push_back(static_cast<int32_t>((i + 100) % kDocuments));
  }
  RetrievalScores want;
  int64_t answered = 0;
  for (int64_t i = 0; i < kQueries; ++i) {
    const auto& answers = right[static_cast<size_t>(i)];
    if (answers.empty()) continue;
    ++answered;
    const auto score = [&](int64_t j) {
      double s = 0;
      for (int64_t k = 0; k < kWidth; ++k)
        s += static_cast<double>(queries.as<float>()[i * kWidth + k]) *
             static_cast<double>(documents.as<float>()[j * kWidth + k]);
      return s;
    };
    double best = 1e9, gain = 0, ideal = 0;
    for (size_t r = 0; r < answers.size(); ++r) {
      double rank = 1;
      for (int64_t j = 0; j < kDocuments; ++j) rank += score(j) > score(answers[r]);
      best = std::min(best, rank);
      if (rank <= 10) gain += 1 / std::log2(1 + rank);
      ideal += 1 / std::log2(2.0 + static_cast<double>(r));
    }
    want.recall_1 += best <= 1;
    want.recall_10 += best <= 10;
    want.mrr += 1 / best;
    want.ndcg_10 += gain / ideal;
  }
  const RetrievalScores got = score_retrieval(queries, documents, right, grid.dp());
  const auto n = static_cast<double>(answered);
  EXPECT_EQ(got.queries, answered);
  EXPECT_EQ(got.documents, kDocuments);
  EXPECT_NEAR(got.recall_1, want.recall_1 / n, 1e-12);
  EXPECT_NEAR(got.recall_10, want.recall_10 / n, 1e-12);
  EXPECT_NEAR(got.mrr, want.mrr / n, 1e-12);
  EXPECT_NEAR(got.ndcg_10, want.ndcg_10 / n, 1e-12);
  // The same bits on one rank.
  const RetrievalScores alone = score_retrieval(queries, documents, right, grid.tp());
  EXPECT_EQ(got.mrr, alone.mrr);
  EXPECT_EQ(got.ndcg_10, alone.ndcg_10);
}

TEST(Evaluation, EqualScoresStandAtTheirExpectedPlace) {
  Runtime& runtime = test_runtime();
  ProcessGrid grid(runtime, {runtime.size(), 1});
  // Four equal documents: the right one is expected at place 1 + 3/2.
  Tensor queries = Tensor::zeros({1, 2}, DType::f32), documents = Tensor::zeros({5, 2}, DType::f32);
  queries.as<float>()[0] = 1;
  for (int64_t j = 0; j < 4; ++j) documents.as<float>()[2 * j] = 1;
  const RetrievalScores s = score_retrieval(queries, documents, {{2}}, grid.dp());
  EXPECT_EQ(s.recall_1, 0);
  EXPECT_EQ(s.recall_5, 1);
  EXPECT_DOUBLE_EQ(s.mrr, 1 / 2.5);
}

}  // namespace
}  // namespace amur
