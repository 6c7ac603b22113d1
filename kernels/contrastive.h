// Passes over one tile of the contrastive logit matrix.
//
// A tile holds Z = s q.k without the bias, [m, n] in f32 or f64. Entries that take part in no sum
// (masked ones, and each row's positive, which is handled apart in double) hold kMaskedLogit: it is
// finite, so that no pass can make a NaN of it, and below any logit of unit vectors, so that its
// exponential is exactly 0 next to a real one.
//
// All tensors lie where the tile lies. Every sum has a fixed order, whatever the number of threads;
// results are left on the device, and nothing waits for them.
#pragma once

#include "src/core/tensor.h"

namespace amur {

inline constexpr float kMaskedLogit = -1e30f;

// What is in no sum, for every row of the whole matrix. Columns count in the whole matrix.
struct LogitExclusions {
  ConstTensorView positive;  // [rows] i64 the row's right column; -1: none
  ConstTensorView self;      // [rows] i64 column of the row's own text; -1: none
  // Masked columns of row i: columns[first .. last-1] for each pair (first, last) of
  // ranges[first_range[i] .. first_range[i+1]-1], but not its positive. Ranges may overlap.
  ConstTensorView first_range;  // [rows + 1] i64
  ConstTensorView ranges;       // [k, 2] i64
  ConstTensorView columns;      // [l] i32, ascending within a range
};

// Where the first entry of a tile stands in the whole matrix.
struct TilePlace {
  int64_t row = 0, column = 0;
};

// Sets positives, own and masked entries to kMaskedLogit.
//   positive_logit [m] f64, may be undefined: takes Z at the positives that are in this tile
//   masked [1] f64, may be undefined: += entries that were masked; a positive or own entry is not
void contrastive_exclude(TensorView logits, TilePlace place, const LogitExclusions& exclusions,
                         TensorView positive_logit, TensorView masked, Stream stream = {});

// Running log-sum-exp of rows and of columns: maximum and sum of exp(Z - maximum), merged with what
// the statistics hold already. Start from maximum = kMaskedLogit, sum = 0.
//   logits [m, n]; row_maximum [m], column_maximum [n] dtype of logits; row_sum [m], column_sum [n]
//   f64. The column views may both be undefined.
void contrastive_statistics(ConstTensorView logits, TensorView row_maximum, TensorView row_sum,
                            TensorView column_maximum, TensorView column_sum, Stream stream = {});

// The positives of a tile's rows.
struct TilePositives {
  ConstTensorView column;    // [m] i64 in the whole matrix; -1: the row has none
  int64_t first_column = 0;  // of the tile
  ConstTensorView value;     // [m] f64
};

// logits <- G = row_factor_i exp(Z_ij - row_maximum_i) + column_factor_j exp(Z_ij -
// column_maximum_j), and at the positives their `value`
//   row_factor [m], column_factor [n] dtype of logits: weight over the sum of the row or column, 0
//   for none. The column views may both be undefined.
//   sum [1] f64 += sum G Z, without the positives
void contrastive_softmax_gradient(TensorView logits, ConstTensorView row_maximum,
                                  ConstTensorView row_factor, ConstTensorView column_maximum,
                                  ConstTensorView column_factor, const TilePositives& positives,
                                  TensorView sum, Stream stream = {});

// Every entry is a decision of its own: logits <- G = y weight sigmoid(y (Z_ij + bias)), y = -1 at
// the positives, whose Z is their `value`, and 1 elsewhere; 0 in rows without a positive.
//   sums [3] f64 += weight * sum log(1 + exp(y (Z + bias))), sum G, sum G Z
void contrastive_sigmoid(TensorView logits, double bias, double weight,
                         const TilePositives& positives, TensorView sums, Stream stream = {});

}  // namespace amur
