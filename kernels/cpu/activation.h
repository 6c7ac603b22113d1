#pragma once

#include "kernels/activation.h"
#include "kernels/cpu/isa.h"

namespace amur::cpu {

template <class T>
struct ActivationKernels {
  // u [rows, width] or [rows, 2, width]; y, dy [rows, width]; du as u; the backward's y may be null
  void (*forward)(ActivationKind kind, int64_t rows, int64_t width, const T* u, T* y);
  void (*backward)(ActivationKind kind, int64_t rows, int64_t width, const T* dy, const T* u,
                   T* du, T* y);
};

}  // namespace amur::cpu
