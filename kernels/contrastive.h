// Passes over one tile of the contrastive logit matrix.
//
// A tile holds Z = s q.k without the bias, [m, n] in f32 or f64. Entries that take part in no sum
// (masked ones, and positives, which the caller handles apart in double) hold kMaskedLogit: it is
// finite, so that no pass can make a NaN of it, and below any logit of unit vectors, so that its
// exponential is exactly 0 next to a real one.
#pragma once

#include "src/core/tensor.h"

namespace amur {

inline constexpr float kMaskedLogit = -1e30f;

// Running log-sum-exp of rows and of columns: maximum and sum of exp(Z - maximum), merged with what
// the statistics hold already. Start from maximum = kMaskedLogit, sum = 0.
//   logits [m, n]; row_maximum [m], column_maximum [n] dtype of logits; row_sum [m], column_sum [n]
//   f64. The column views may both be undefined.
// Every sum has a fixed order, whatever the number of threads.
void contrastive_statistics(ConstTensorView logits, TensorView row_maximum, TensorView row_sum,
                            TensorView column_maximum, TensorView column_sum, Stream stream = {});

// logits <- G = row_factor_i exp(Z_ij - row_maximum_i) + column_factor_j exp(Z_ij -
// column_maximum_j)
//   row_factor [m], column_factor [n] dtype of logits: weight over the sum of the row or column, 0
//   for none. The column views may both be undefined.
// Returns sum G Z.
double contrastive_softmax_gradient(TensorView logits, ConstTensorView row_maximum,
                                    ConstTensorView row_factor, ConstTensorView column_maximum,
                                    ConstTensorView column_factor, Stream stream = {});

struct SigmoidSums {
  double loss = 0;        // weight * sum_ij log(1 + exp(Z_ij + bias))
  double gradient = 0;    // sum G
  double gradient_z = 0;  // sum G Z
};
// The loss of negative pairs: logits <- G = row_weight_i sigmoid(Z_ij + bias).
//   row_weight [m] dtype of logits
SigmoidSums contrastive_sigmoid(TensorView logits, double bias, ConstTensorView row_weight,
                                Stream stream = {});

}  // namespace amur
