// The contrastive loss and its gradients from the materialised matrix of all scores, in plain
// double loops on one process: what `contrastive_loss` is measured against. Slow on purpose.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "src/train/config/config.h"

namespace amur {

// Row-major [rows, width].
struct ReferenceRows {
  std::vector<double> values;
  int64_t rows = 0, width = 0;
};

struct ReferenceBatch {
  ReferenceRows queries, documents;
  std::vector<uint64_t> query_ids, document_ids;
  std::vector<int32_t> positive;                       // [queries] index into documents
  std::vector<std::vector<uint64_t>> other_positives;  // [queries] text ids
};

struct ReferenceLoss {
  double loss = 0;
  double scale_gradient = 0, scale_magnitude = 0;  // sum of G (S - b), and of its magnitudes
  double bias_gradient = 0, bias_magnitude = 0;
  std::vector<double> dq, dk;  // dL/dz
  int64_t masked = 0;          // candidates left out, a text as its own candidate not counted
};

// With loss.precision bf16 embeddings are rounded to it first and the gradient of the rounded ones
// is given; everything else stays in double.
//
// `row_weights` [queries] replaces 1/N: the weight of each query's row (and of its column, in the
// symmetric loss). Empty: 1/N.
ReferenceLoss reference_loss(const LossConfig& config, double log_scale, double bias,
                             const ReferenceBatch& batch, std::span<const double> row_weights = {});

// The loss alone: a fraction of the work.
double reference_loss_value(const LossConfig& config, double log_scale, double bias,
                            const ReferenceBatch& batch);

}  // namespace amur
