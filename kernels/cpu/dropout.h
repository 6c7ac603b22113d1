#pragma once

#include "kernels/cpu/isa.h"
#include "kernels/packed.h"

namespace amur::cpu {

template <class T>
struct DropoutRows {
  int64_t sequences, width;
  const int32_t* cu_seqlens;
  const int64_t* keys;
  DropoutSite site;  // probability > 0
  const T* x;
  const T* residual;  // or null
  T* y;
};

template <class T>
struct DropoutKernels {
  // y = residual + dropout(x)
  void (*add)(const DropoutRows<T>&);
};

}  // namespace amur::cpu
