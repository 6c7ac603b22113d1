// Vectorised parts of the contrastive tile passes; `n` is also the row stride of a tile.
#pragma once

#include <cstdint>

#include "kernels/contrastive.h"

namespace amur::cpu {

struct SigmoidSums {
  double loss = 0, gradient = 0, gradient_z = 0;
};

template <class T>
struct ContrastiveStatistics {
  // Merges one row [n] into its maximum and sum.
  void (*row)(const T* row, int64_t n, T* maximum, double* sum);
  // Merges the columns 0..count-1 (at most kColumnBlock) of m rows into maximum and sum [count].
  void (*columns)(const T* logits, int64_t m, int64_t n, int64_t count, T* maximum, double* sum);
};

// `gradient` may be the row itself.
template <class T, class G>
struct ContrastiveGradients {
  // One row; the column arrays [n] may be null. Returns sum G Z.
  double (*softmax)(const T* row, int64_t n, T row_maximum, T row_factor, const T* column_maximum,
                    const T* column_factor, G* gradient);
  // One row of wrong pairs.
  SigmoidSums (*sigmoid)(const T* row, int64_t n, T bias, T weight, G* gradient);
};
using ContrastiveGradientsInBf16 = ContrastiveGradients<float, bf16>;
using ContrastiveGradientsInF32 = ContrastiveGradients<float, float>;
using ContrastiveGradientsInF64 = ContrastiveGradients<double, double>;

inline constexpr int64_t kColumnBlock = 128;

}  // namespace amur::cpu
