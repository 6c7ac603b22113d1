// Passes over one tile of the contrastive logit matrix.
//
// A tile holds Z = s q.k without the bias, [m, n] in f32 or f64, as a product has left it. Entries
// that take part in no sum (masked ones, and each row's positive, which is handled apart in double)
// count as kMaskedLogit: it is finite, so that no pass can make a NaN of it, and below any logit of
// unit vectors, so that its exponential is exactly 0 next to a real one.
//
// Tensors of rows are those of all rows that the exclusions know, those of columns of all columns;
// a tile takes its own of them. All tensors lie where the tile lies. Every sum has a fixed order,
// whatever the number of threads; results are left on the device, and nothing waits for them unless
// it says so.
#pragma once

#include <vector>

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

// A tile is summed up in panels side by side. Each puts what it has of rows, of columns and of the
// whole into a part of its own, to what other tiles have left there; only behind the last tile are
// the parts added up.
struct LogitParts {
  int64_t rows = 1, columns = 1, whole = 1;
};
// For tiles of at most m x n.
LogitParts logit_parts(int64_t m, int64_t n, Device device);

// Parts of log-sum-exps: maximum and sum of exp(Z - maximum). A sum of 0 is of nothing, whatever
// its maximum: they start from zeros.
struct LogSums {
  TensorView maximum;  // [parts, n] dtype of the logits
  TensorView sum;      // [parts, n] f64
};

// Adds the tile to the log-sum-exps of rows and, unless they are undefined, of columns.
//   positive_logit [rows] f64 takes Z at the positives that are in this tile
//   masked [parts of the whole] f64 += masked entries; a positive or own entry is not
void contrastive_statistics(const LogitTile& tile, const LogSums& rows, const LogSums& columns,
                            TensorView positive_logit, TensorView masked, Stream stream = {});
// Leaves the log-sum-exp of all parts in the first; of nothing, it is kMaskedLogit and 0.
void merge_log_sums(const LogSums& sums, Stream stream = {});

// gradient = G = row_factor_i exp(Z_ij - row_maximum_i) + column_factor_j exp(Z_ij -
// column_maximum_j), and at the positives positive_gradient_i
//   row_factor, column_factor dtype of the logits: weight over the sum of the row or column, 0 for
//   none. The column views may both be undefined.
//   positive_gradient [rows] f64
//   sum [parts of the whole] f64 += sum G Z, without the positives
//   gradient [m, n] of the dtype of the logits, in whose memory it may be, or bf16 in its own:
//   rounded once; sums are of what is not rounded
void contrastive_softmax_gradient(const LogitTile& tile, ConstTensorView row_maximum,
                                  ConstTensorView row_factor, ConstTensorView column_maximum,
                                  ConstTensorView column_factor, ConstTensorView positive_gradient,
                                  TensorView sum, TensorView gradient, Stream stream = {});

// Every entry is a decision of its own: gradient = G = y weight sigmoid(y (Z_ij + bias)), y = -1 at
// the positives and 1 elsewhere; 0 in rows without a positive.
//   sums [4, parts of the whole] f64 += weight * sum log(1 + exp(y (Z + bias))), sum G, sum G Z,
//   masked entries
//   gradient: as above
void contrastive_sigmoid(const LogitTile& tile, double bias, double weight, TensorView sums,
                         TensorView gradient, Stream stream = {});

// The sum of parts[k, :] for every k, f64; waits for it.
std::vector<double> sums_of_parts(ConstTensorView parts, Stream stream = {});

// What lies between the statistics and the gradients of a softmax, in these steps:
enum class SoftmaxStep {
  // row_maximum: of the candidates, positive included; row_factor, positive_gradient; terms
  rows,
  // column_maximum: of the candidates here; then it is to become the largest over all ranks
  column_maxima,
  // column_terms from own_maximum, column_sum and column_maximum; then to be summed over all ranks
  column_terms,
  // column_factor; what columns add to positive_gradient and terms
  columns
};
struct SoftmaxEnds {
  double weight = 0;                         // of a row, and of a column
  ConstTensorView positive;                  // [rows] i64, as of LogitExclusions
  ConstTensorView positive_logit;            // [rows] f64
  TensorView row_maximum, row_factor;        // [rows] dtype of the logits
  ConstTensorView row_sum;                   // [rows] f64
  TensorView positive_gradient;              // [rows] f64
  TensorView terms;                          // [2, rows] f64: loss; G Z at the positive
  TensorView column_maximum, column_factor;  // [columns]
  ConstTensorView own_maximum;               // [columns] over this rank's rows, no positives
  ConstTensorView column_sum;                // [columns] f64, the same
  TensorView column_terms;  // [2, columns] f64: over negatives; at the positive, 0 if there is none
};
void softmax_step(SoftmaxStep step, const SoftmaxEnds& ends, Stream stream = {});

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
