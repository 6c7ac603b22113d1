// Retrieval metrics of pairs over their whole pool, in both directions, spread over all ranks.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "src/train/data/data.h"
#include "src/train/evaluation/bootstrap.h"
#include "src/train/text_embedder.h"

namespace amur {

// Of one direction. A query with several right documents counts its best-placed one, in recall and
// reciprocal rank; nDCG@10 counts all of them with gain 1. The rank of a document is 1 + the number
// of better ones + half the number of others with the same score (within 1e-6): its expected place.
struct RetrievalScores {
  double recall_1 = 0, recall_5 = 0, recall_10 = 0, mrr = 0, ndcg_10 = 0;
  int64_t queries = 0, documents = 0;
  std::vector<Interval> intervals;  // of the five in this order, or none
};

// Whether to ask the bootstrap, over the queries: it takes a thousand resamples of them.
enum class Intervals : bool { no, yes };

struct Evaluation {
  std::string name;
  RetrievalScores query_to_document, document_to_query;
  double seconds = 0;
};

// `right[i]` are the rows of `documents` that answer query i; a query without any does not count.
// queries [n, e], documents
// [m, e]: equal on all ranks. Each rank scores its share of the query blocks; blocks and tiles
// depend on n and m only, so the result does not depend on the number of ranks. Memory: one block
// of at most 16 Mi scores, and 40 bytes a query. Collective.
RetrievalScores score_retrieval(ConstTensorView queries, ConstTensorView documents,
                                const std::vector<std::vector<int32_t>>& right, Communicator& world,
                                Intervals intervals = Intervals::no);

// Embeds the pool once and scores both directions. Collective.
Evaluation evaluate(TextEmbedder& embedder, const EvalSet& set, Communicator& world,
                    Intervals intervals = Intervals::no);

// The metrics as `amur eval --json` prints them, and as a table for people.
std::string to_json(const Evaluation& evaluation);
std::string to_table(const Evaluation& evaluation);

}  // namespace amur
