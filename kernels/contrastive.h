// Passes over one tile of the contrastive logit matrix.
//
// A tile holds Z = s q.k without the bias, [m, n] in f32 or f64, as a product has left it. Entries
// that take part in no sum (masked ones, and each row's positive, which is handled apart in double)
// count as kMaskedLogit: it is finite, so that no pass can make a NaN of it, and below any logit of
// unit vectors, so that its exponential is exactly 0 next to a real one.
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

// The entries are used up: a pass may leave anything in their place.
struct LogitTile {
  TensorView logits;  // [m, n] f32 or f64
  TilePlace place;
  const LogitExclusions& exclusions;  // of the whole matrix
};

// Running log-sum-exp of rows and of columns: maximum and sum of exp(Z - maximum), merged with what
// the statistics hold already. Start from maximum = kMaskedLogit, sum = 0.
//   row_maximum [m], column_maximum [n] dtype of the logits; row_sum [m], column_sum [n] f64. The
//   column views may both be undefined.
//   positive_logit [m] f64 takes Z at the positives that are in this tile
//   masked [m] f64 += masked entries of the row; a positive or own entry is not
void contrastive_statistics(const LogitTile& tile, TensorView row_maximum, TensorView row_sum,
                            TensorView column_maximum, TensorView column_sum,
                            TensorView positive_logit, TensorView masked, Stream stream = {});

// gradient = G = row_factor_i exp(Z_ij - row_maximum_i) + column_factor_j exp(Z_ij -
// column_maximum_j), and at the positives positive_gradient_i
//   row_factor [m], column_factor [n] dtype of the logits: weight over the sum of the row or
//   column, 0 for none. The column views may both be undefined.
//   positive_gradient [m] f64
//   sum [1] f64 += sum G Z, without the positives
//   gradient [m, n] of the dtype of the logits, in whose memory it may be, or bf16 in its own:
//   rounded once; sums are of what is not rounded
void contrastive_softmax_gradient(const LogitTile& tile, ConstTensorView row_maximum,
                                  ConstTensorView row_factor, ConstTensorView column_maximum,
                                  ConstTensorView column_factor, ConstTensorView positive_gradient,
                                  TensorView sum, TensorView gradient, Stream stream = {});

// Every entry is a decision of its own: gradient = G = y weight sigmoid(y (Z_ij + bias)), y = -1 at
// the positives and 1 elsewhere; 0 in rows without a positive.
//   sums [4] f64 += weight * sum log(1 + exp(y (Z + bias))), sum G, sum G Z, masked entries
//   gradient: as above
void contrastive_sigmoid(const LogitTile& tile, double bias, double weight, TensorView sums,
                         TensorView gradient, Stream stream = {});

// Calls f.template operator()<T, G>() for logits of type T and gradients of type G.
template <class F>
void dispatch_gradient(const LogitTile& tile, DType gradient, const char* op, F&& f) {
  dispatch_f32_f64(tile.logits.dtype(), op, [&]<class T>() {
    if (gradient == dtype_of<T>) return f.template operator()<T, T>();
    if constexpr (std::is_same_v<T, float>) {
      if (gradient == DType::bf16) return f.template operator()<float, bf16>();
    }
    throw InternalError(fmt::format("{}: logits are {}, gradients {}", op, name_of(dtype_of<T>),
                                    name_of(gradient)));
  });
}

}  // namespace amur
