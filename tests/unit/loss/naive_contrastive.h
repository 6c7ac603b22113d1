// The contrastive loss and its gradients as one process would write them down: the whole matrix, in
// double, entry by entry. Shares no code with the library.
#pragma once

#include <cstdint>
#include <vector>

namespace naive {

using Matrix = std::vector<std::vector<double>>;

struct Batch {
  Matrix queries, documents;
  std::vector<uint64_t> query_ids, document_ids;
  std::vector<int> positive;                  // of each query, in `documents`
  std::vector<std::vector<uint64_t>> others;  // further right documents of each query
};

enum class Kind { one_direction, symmetric, siglip };

struct Options {
  Kind kind = Kind::one_direction;
  bool all_texts = false;  // one tower: every text is a row and a column
  bool mask = true;
  double log_scale = 0, bias = 0;
  // Weight of each anchor's terms; empty: 1 / number of anchors.
  std::vector<double> row_weights;
};

struct Result {
  double loss = 0, dt = 0, db = 0;
  double dt_magnitude = 0;  // sum |G (S - b)|
  Matrix dq, dk;
  int64_t masked = 0;
};

Result contrastive(const Batch& batch, const Options& options);

}  // namespace naive
