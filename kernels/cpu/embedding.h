#pragma once

#include "kernels/cpu/isa.h"
#include "kernels/embedding.h"

namespace amur::cpu {

// Pointers are null where the tensor of kernels/embedding.h is undefined. A table of tokens holds
// `held` rows from the id `first_row` on.
template <class T, class P>  // activations and tables
struct LookupKernels {
  void (*lookup)(int64_t sequences, const int32_t* cu_seqlens, int64_t width, const int32_t* ids,
                 const P* tokens, int64_t first_row, int64_t held, const P* positions, T* y);
};

template <class T, class P = AccumulateType<T>>
struct EmbeddingKernels {
  void (*scatter)(int64_t sequences, const int32_t* cu_seqlens, int64_t width, const int32_t* ids,
                  const T* dy, P sink_scale, P* tokens_sink, int64_t first_row, int64_t held,
                  P* positions_sink);
  // table [longest, width]
  void (*add_positions)(int64_t sequences, const int32_t* cu_seqlens, int64_t width, const P* table,
                        T* y);
  void (*pool)(PoolingKind kind, int64_t sequences, const int32_t* cu_seqlens, int64_t width,
               const T* x, P* h);
  void (*unpool)(PoolingKind kind, int64_t sequences, const int32_t* cu_seqlens, int64_t width,
                 const P* dh, T* dx);
};

template <class P>
struct NormaliseKernels {
  void (*forward)(int64_t rows, int64_t width, const P* h, P* z, P* norm);
  void (*backward)(int64_t rows, int64_t width, const P* dz, const P* z, const P* norm, P* dh);
};

}  // namespace amur::cpu
