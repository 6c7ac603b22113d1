// The best documents of each query over a corpus that comes in windows, and what such a ranking is
// worth.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "comm/communicator.h"

namespace amur {

// Figures of one query, from its `depth` best documents. R are its relevant documents (relevance
// above 0), rel(i) the relevance of the document at place i, unjudged ones count as 0.
//   ndcg@k       sum_{i<=k} rel(i)/log2(1+i), over the same sum of all judged documents in the best
//                order
//   map@k        sum_{i<=k, rel(i)>0} (relevant among the first i)/i, over |R|
//   mrr@k        1/i of the first relevant document, 0 if it is not among the first k
//   accuracy@k   1 if a relevant one is among the first k
//   precision@k  relevant among the first k, over k
//   recall@k     relevant among the first k, over |R|
// These are ndcg_cut, map_cut, P and recall of trec_eval, and so those of BEIR and MTEB;
// sentence-transformers' InformationRetrievalEvaluator gives the same for relevance 0 and 1, but
// for map@k of a query with more than k relevant documents, which it divides by k.
inline constexpr std::array kRankingMetrics = {
    "ndcg@10",    "map@10",      "map@100",     "mrr@10",      "accuracy@1",
    "accuracy@5", "accuracy@10", "precision@1", "precision@5", "precision@10",
    "recall@1",   "recall@5",    "recall@10",   "recall@100"};
inline constexpr int64_t kRankingDepth = 100;

// `ranked`: relevance of the documents found, best first. `judged`: the relevance of all judged
// documents, one of them above 0. `metrics` has kRankingMetrics.size() elements.
void ranking_metrics(std::span<const int32_t> ranked, std::span<const int32_t> judged,
                     std::span<double> metrics);

struct Hit {
  double score = 0;
  int32_t document = 0;
};

class TopDocuments {
 public:
  // queries [n, e]. `tie_order[d]` is the place of document d among documents of equal score.
  // `left_out[q]` is a document that query q does not compete with, or -1. All are equal on all
  // ranks and outlive this object, which keeps the hits of this rank's queries.
  TopDocuments(ConstTensorView queries, std::span<const int32_t> tie_order,
               std::span<const int32_t> left_out, const Communicator& world);
  // documents first .. first + rows - 1, [rows, e], the same on all ranks. Blocks of queries depend
  // on their number alone, so scores have the same bits at any number of ranks.
  void add(ConstTensorView documents, int64_t first);

  bool mine(int64_t query) const { return query / kBlock % ranks_ == rank_; }
  // The best kRankingDepth, best first; of a query of this rank.
  std::vector<Hit> of(int64_t query) const;

 private:
  static constexpr int64_t kBlock = 64;
  bool better(const Hit& a, const Hit& b) const;

  ConstTensorView queries_;
  std::span<const int32_t> tie_order_, left_out_;
  int64_t rank_, ranks_;
  std::vector<std::vector<Hit>> best_;  // heaps with the worst in front
};

}  // namespace amur
