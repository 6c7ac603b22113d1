// Compiled once per instruction set.
#include "kernels/cpu/embedding.h"

#include "kernels/cpu/parallel.h"
#include "kernels/cpu/simd.h"

namespace amur::cpu {
namespace AMUR_ISA {

constexpr int64_t kTokens = 128;  // a piece of work, at least

// f(token, position) for all tokens, in parallel.
template <class F>
void for_each_token(int64_t sequences, const int32_t* cu_seqlens, const F& f) {
  parallel_for(cu_seqlens[sequences], kTokens, [&](int64_t first, int64_t last) {
    const int32_t* sequence = std::upper_bound(cu_seqlens, cu_seqlens + sequences, first) - 1;
    for (int64_t t = first; t < last; ++t) {
      if (t == sequence[1]) ++sequence;
      f(t, t - sequence[0]);
    }
  });
}

template <class T, class P>
void lookup(int64_t sequences, const int32_t* cu_seqlens, int64_t width, const int32_t* ids,
            const P* tokens, int64_t first_row, int64_t held, const P* positions, T* y) {
  using A = AccumulateType<T>;
  for_each_token(sequences, cu_seqlens, [&](int64_t t, int64_t position) {
    const int64_t id = ids[t] - first_row;
    const P* token_row = id >= 0 && id < held ? tokens + id * width : nullptr;
    const P* position_row = token_row && positions ? positions + position * width : nullptr;
    for_each_vector<A>(width, [&](auto at) {
      Vec<A> v{};
      if (token_row) v = at.load_from(token_row);
      if (position_row) v += at.load_from(position_row);
      at.store_to(y + t * width, v);
    });
  });
}

template <class T, class P>
void add_positions(int64_t sequences, const int32_t* cu_seqlens, int64_t width, const P* table,
                   T* y) {
  for_each_token(sequences, cu_seqlens, [&](int64_t t, int64_t position) {
    T* row = y + t * width;
    for_each_vector<P>(width, [&](auto at) {
      at.store_to(row, at.load_from(row) + at.load_from(table + position * width));
    });
  });
}

// Each thread owns some columns and goes through all tokens in order, so the order in which the
// rows of one id are added does not depend on the number of threads.
template <class T, class P>
void scatter(int64_t sequences, const int32_t* cu_seqlens, int64_t width, const int32_t* ids,
             const T* dy, P sink_scale, P* tokens_sink, int64_t first_row, int64_t held,
             P* positions_sink) {
  constexpr int64_t lanes = kLanes<P>;
  parallel_for((width + lanes - 1) / lanes, 64 / lanes + 1, [&](int64_t first, int64_t last) {
    const int64_t column = first * lanes, count = std::min(width, last * lanes) - column;
    for (int64_t s = 0; s < sequences; ++s) {
      for (int64_t t = cu_seqlens[s]; t < cu_seqlens[s + 1]; ++t) {
        const T* from = dy + t * width + column;
        const int64_t id = tokens_sink ? ids[t] - first_row : -1;
        P* token_row = id >= 0 && id < held ? tokens_sink + id * width + column : nullptr;
        P* position_row =
            positions_sink ? positions_sink + (t - cu_seqlens[s]) * width + column : nullptr;
        for_each_vector<P>(count, [&](auto at) {
          const Vec<P> d = sink_scale * at.load_from(from);
          if (token_row) at.store_to(token_row, at.load_from(token_row) + d);
          if (position_row) at.store_to(position_row, at.load_from(position_row) + d);
        });
      }
    }
  });
}

template <class T, class P>
void pool(PoolingKind kind, int64_t sequences, const int32_t* cu_seqlens, int64_t width, const T* x,
          P* h) {
  parallel_for(sequences, kTokens / 8, [&](int64_t first, int64_t last) {
    for (int64_t s = first; s < last; ++s) {
      const int64_t begin = cu_seqlens[s];
      const int64_t count = kind == PoolingKind::cls ? 1 : cu_seqlens[s + 1] - begin;
      const P length = static_cast<P>(count);
      for_each_vector<P>(width, [&](auto at) {
        Vec<P> sum{};
        for (int64_t t = begin; t < begin + count; ++t) sum += at.load_from(x + t * width);
        at.store_to(h + s * width, sum / length);
      });
    }
  });
}

template <class T, class P>
void unpool(PoolingKind kind, int64_t sequences, const int32_t* cu_seqlens, int64_t width,
            const P* dh, T* dx) {
  parallel_for(sequences, kTokens / 8, [&](int64_t first, int64_t last) {
    for (int64_t s = first; s < last; ++s) {
      const int64_t begin = cu_seqlens[s], end = cu_seqlens[s + 1];
      const bool mean = kind == PoolingKind::mean;
      const P length = mean ? static_cast<P>(end - begin) : P(1);
      for_each_vector<P>(width, [&](auto at) {
        const Vec<P> d = at.load_from(dh + s * width) / length;
        at.store_to(dx + begin * width, d);
        for (int64_t t = begin + 1; t < end; ++t) at.store_to(dx + t * width, mean ? d : Vec<P>{});
      });
    }
  });
}

// In double in either type: tiny and huge rows keep their direction.
template <class P>
double dot(int64_t n, const P* a, const P* b) {
  constexpr int64_t width = 8;
  double lane[width] = {};
  int64_t i = 0;
  for (; i + width <= n; i += width)
    for (int64_t l = 0; l < width; ++l)
      lane[l] += static_cast<double>(a[i + l]) * static_cast<double>(b[i + l]);
  for (int64_t l = 0; i < n; ++i, ++l)
    lane[l] += static_cast<double>(a[i]) * static_cast<double>(b[i]);
  double sum = 0;
  for (double v : lane) sum += v;
  return sum;
}

template <class P>
void normalise_forward(int64_t rows, int64_t width, const P* h, P* z, P* norm) {
  parallel_for(rows, 32, [&](int64_t first, int64_t last) {
    for (int64_t s = first; s < last; ++s) {
      const P length = static_cast<P>(std::sqrt(dot(width, h + s * width, h + s * width)));
      norm[s] = length;
      for (int64_t i = s * width; i < (s + 1) * width; ++i)
        z[i] = length > 0 ? h[i] / length : P(0);
    }
  });
}

template <class P>
void normalise_backward(int64_t rows, int64_t width, const P* dz, const P* z, const P* norm,
                        P* dh) {
  parallel_for(rows, 32, [&](int64_t first, int64_t last) {
    for (int64_t s = first; s < last; ++s) {
      const P along = static_cast<P>(dot(width, dz + s * width, z + s * width));
      for (int64_t i = s * width; i < (s + 1) * width; ++i)
        dh[i] = norm[s] > 0 ? (dz[i] - z[i] * along) / norm[s] : P(0);
    }
  });
}

}  // namespace AMUR_ISA

// The macro below takes a table's type as one argument.
using LookupFloat = LookupKernels<float, float>;
using LookupDouble = LookupKernels<double, double>;
using LookupBf16 = LookupKernels<bf16, float>;
using LookupFloatInBf16 = LookupKernels<float, bf16>;
using LookupBf16InBf16 = LookupKernels<bf16, bf16>;

AMUR_KERNEL_TABLE(LookupFloat, AMUR_ISA::lookup)
AMUR_KERNEL_TABLE(LookupDouble, AMUR_ISA::lookup)
AMUR_KERNEL_TABLE(LookupBf16, AMUR_ISA::lookup)
AMUR_KERNEL_TABLE(LookupFloatInBf16, AMUR_ISA::lookup)
AMUR_KERNEL_TABLE(LookupBf16InBf16, AMUR_ISA::lookup)
AMUR_KERNEL_TABLE(EmbeddingKernels<float>, AMUR_ISA::scatter, AMUR_ISA::add_positions,
                  AMUR_ISA::pool, AMUR_ISA::unpool)
AMUR_KERNEL_TABLE(EmbeddingKernels<bf16>, AMUR_ISA::scatter, AMUR_ISA::add_positions,
                  AMUR_ISA::pool, AMUR_ISA::unpool)
AMUR_KERNEL_TABLE(EmbeddingKernels<double>, AMUR_ISA::scatter, AMUR_ISA::add_positions,
                  AMUR_ISA::pool, AMUR_ISA::unpool)
AMUR_KERNEL_TABLE(NormaliseKernels<float>, AMUR_ISA::normalise_forward,
                  AMUR_ISA::normalise_backward)
AMUR_KERNEL_TABLE(NormaliseKernels<double>, AMUR_ISA::normalise_forward,
                  AMUR_ISA::normalise_backward)

}  // namespace amur::cpu
