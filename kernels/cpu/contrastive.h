// Vectorised parts of the contrastive tile passes; `n` is also the row stride of a tile.
#pragma once

#include <cstdint>

#include "kernels/contrastive.h"

namespace amur::cpu {

struct SigmoidSums {
  double loss = 0, gradient = 0, gradient_z = 0;
};

template <class T>
struct ContrastiveKernels {
  // Merges one row [n] into its maximum and sum.
  void (*row_statistics)(const T* row, int64_t n, T* maximum, double* sum);
  // Merges the columns 0..count-1 (at most kColumnBlock) of m rows into maximum and sum [count].
  void (*column_statistics)(const T* logits, int64_t m, int64_t n, int64_t count, T* maximum,
                            double* sum);
  // One row in place; the column arrays [n] may be null. Returns sum G Z.
  double (*softmax_gradient)(T* row, int64_t n, T row_maximum, T row_factor,
                             const T* column_maximum, const T* column_factor);
  // One row of wrong pairs in place.
  SigmoidSums (*sigmoid)(T* row, int64_t n, T bias, T weight);
};

inline constexpr int64_t kColumnBlock = 128;

}  // namespace amur::cpu
