// Retrieval over a corpus in BEIR's layout.
#pragma once

#include <string>

#include "src/train/evaluation/bootstrap.h"
#include "src/train/text_embedder.h"

namespace amur {

// A folder with
//   corpus.jsonl       {"_id": "d1", "title": "...", "text": "..."}: title (if any), space, text
//   queries.jsonl      {"_id": "q1", "text": "..."}
//   qrels/SPLIT.tsv    query-id <TAB> corpus-id <TAB> relevance, a whole number; a first line
//                      whose relevance is none is the heading
// each of them also as .gz. As in BEIR, the queries that count are those of the qrels, and a
// document with the id of the query is left out of its ranking, unless the qrels name the two
// (ArguAna and Quora ask with documents of their corpus). Queries without a relevant document do
// not count; trec_eval gives them 0.
struct RetrievalOptions {
  std::string folder, split = "test";
  std::string query_prefix, document_prefix;
};

// The figures of src/train/evaluation/ranking.h, means over the queries. Documents of equal score
// are ordered by id, the greater first, as trec_eval does. Memory of a rank: the embeddings of the
// queries, a window of documents, 12 bytes a document, and on rank 0 the ids of all documents; a
// corpus that is not .gz is mapped. Collective; UsageError and IoError on every rank.
TaskScores evaluate_retrieval(const RetrievalOptions& options, TextEmbedder& embedder,
                              Communicator& world);

}  // namespace amur
