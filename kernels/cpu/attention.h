#pragma once

#include "kernels/cpu/isa.h"
#include "kernels/packed.h"
#include "src/core/dtype.h"

namespace amur::cpu {

template <class T, class P = AccumulateType<T>>
struct AttentionProblem {
  int64_t sequences, heads, head_size, longest;
  int64_t window;  // keys on either side that a query sees
  const int32_t* cu_seqlens;
  P scale;
  const int64_t* dropout_keys;  // null where nothing is dropped
  DropoutSite dropout;
  const T* qkv;  // [T, 3, heads, head_size]
};

template <class T, class P = AccumulateType<T>>
struct AttentionKernels {
  void (*forward)(const AttentionProblem<T>&, T* output, P* lse);
  void (*backward)(const AttentionProblem<T>&, const T* d_output, const P* lse, T* dqkv);
  // cosines, sines [longest, head_size / 2]
  void (*rotate)(int64_t sequences, const int32_t* cu_seqlens, int64_t heads, int64_t head_size,
                 const P* cosines, const P* sines, T* qkv);
};

}  // namespace amur::cpu
