// Rows of one id, tokens of one sequence and sequences at one position are added one after another
// by the thread that owns the column, in the CPU's order.
#include "kernels/embedding.h"

#include "kernels/cuda/packed.cuh"
#include "kernels/positions_math.h"

namespace amur::cuda {
namespace {

// Blocks take token after token, or sequence after sequence.

// P: of the tables.
template <class T, class P, class A = AccumulateType<T>>
__global__ void __launch_bounds__(kThreads)
    lookup_kernel(int64_t tokens, int64_t width, int64_t sequences, const int32_t* cu,
                  const int32_t* ids, const P* table, int64_t first_row, int64_t held,
                  const P* positions, T* y) {
  for (int64_t t = blockIdx.x; t < tokens; t += gridDim.x) {
    const int64_t id = ids[t] - first_row;
    const bool here = id >= 0 && id < held;
    const int64_t place = here && positions ? t - cu[sequence_of(t, sequences, cu)] : 0;
    for (int64_t j = threadIdx.x; j < width; j += kThreads) {
      A v = here ? static_cast<A>(table[id * width + j]) : A(0);
      if (here && positions) v += static_cast<A>(positions[place * width + j]);
      y[t * width + j] = T(v);
    }
  }
}

// next[t] = the next token with the id of t, or `tokens`; follows[u] = 1 where u is the next of
// some token (written by that one alone).
__global__ void __launch_bounds__(kThreads)
    link_kernel(int64_t tokens, const int32_t* ids, int32_t* next, int32_t* follows) {
  for (int64_t t = first_item(); t < tokens; t += item_stride()) {
    const int32_t id = ids[t];
    int64_t u = t + 1;
    while (u < tokens && ids[u] != id) ++u;
    next[t] = static_cast<int32_t>(u);
    if (u < tokens) follows[u] = 1;
  }
}

// The block of an id's first token adds the rows of all its tokens. S: of the sink.
template <class T, class S, class P = AccumulateType<T>>
__global__ void __launch_bounds__(kThreads)
    scatter_kernel(int64_t tokens, int64_t width, const int32_t* ids, const int32_t* next,
                   const int32_t* follows, const T* dy, P sink_scale, int64_t first_row,
                   int64_t held, S* sink) {
  for (int64_t t = blockIdx.x; t < tokens; t += gridDim.x) {
    const int64_t id = ids[t] - first_row;
    if (follows[t] || id < 0 || id >= held) continue;
    for (int64_t j = threadIdx.x; j < width; j += kThreads) {
      P sum = static_cast<P>(sink[id * width + j]);
      for (int64_t u = t; u < tokens; u = next[u])
        sum += sink_scale * static_cast<P>(dy[u * width + j]);
      sink[id * width + j] = S(sum);
    }
  }
}

template <class T, class S, class P = AccumulateType<T>>
__global__ void __launch_bounds__(kThreads)
    position_scatter_kernel(int64_t longest, int64_t width, int64_t sequences, const int32_t* cu,
                            const T* dy, P sink_scale, S* sink) {
  for (int64_t p = blockIdx.x; p < longest; p += gridDim.x) {
    for (int64_t j = threadIdx.x; j < width; j += kThreads) {
      P sum = static_cast<P>(sink[p * width + j]);
      for (int64_t s = 0; s < sequences; ++s)
        if (cu[s] + p < cu[s + 1]) sum += sink_scale * static_cast<P>(dy[(cu[s] + p) * width + j]);
      sink[p * width + j] = S(sum);
    }
  }
}

template <class P>
__global__ void __launch_bounds__(kThreads)
    sinusoid_kernel(int64_t positions, int64_t width, P* table) {
  for (int64_t i = first_item(); i < positions * width; i += item_stride()) {
    const int64_t j = i % width;
    const double angle = static_cast<double>(i / width) * sinusoidal_frequency(j, width);
    table[i] = static_cast<P>(j % 2 == 0 ? sin(angle) : cos(angle));
  }
}

template <class T, class P = AccumulateType<T>>
__global__ void __launch_bounds__(kThreads)
    add_positions_kernel(int64_t tokens, int64_t width, int64_t sequences, const int32_t* cu,
                         const P* table, T* y) {
  for (int64_t t = blockIdx.x; t < tokens; t += gridDim.x) {
    const int64_t place = t - cu[sequence_of(t, sequences, cu)];
    for (int64_t j = threadIdx.x; j < width; j += kThreads)
      y[t * width + j] = T(static_cast<P>(y[t * width + j]) + table[place * width + j]);
  }
}

template <class T, class P = AccumulateType<T>>
__global__ void __launch_bounds__(kThreads)
    pool_kernel(bool mean, int64_t sequences, int64_t width, const int32_t* cu, const T* x, P* h) {
  for (int64_t s = blockIdx.x; s < sequences; s += gridDim.x) {
    const int64_t begin = cu[s], count = mean ? cu[s + 1] - begin : 1;
    for (int64_t j = threadIdx.x; j < width; j += kThreads) {
      P sum = 0;
      for (int64_t t = begin; t < begin + count; ++t) sum += static_cast<P>(x[t * width + j]);
      h[s * width + j] = sum / static_cast<P>(count);
    }
  }
}

template <class T, class P = AccumulateType<T>>
__global__ void __launch_bounds__(kThreads)
    unpool_kernel(bool mean, int64_t sequences, int64_t width, const int32_t* cu, const P* dh,
                  T* dx) {
  for (int64_t s = blockIdx.x; s < sequences; s += gridDim.x) {
    const int64_t begin = cu[s], end = cu[s + 1];
    for (int64_t j = threadIdx.x; j < width; j += kThreads) {
      const P d = dh[s * width + j] / static_cast<P>(mean ? end - begin : 1);
      for (int64_t t = begin; t < end; ++t) dx[t * width + j] = T(mean || t == begin ? d : P(0));
    }
  }
}

// The sum of a[j] b[j] over a row, in double: tiny and huge rows keep their direction.
template <class P>
__device__ double row_dot(int64_t width, const P* a, const P* b) {
  double sum = 0;
  for (int64_t j = threadIdx.x; j < width; j += kThreads)
    sum += static_cast<double>(a[j]) * static_cast<double>(b[j]);
  return block_sum(sum);
}

template <class P>
__global__ void __launch_bounds__(kThreads)
    normalise_kernel(int64_t rows, int64_t width, const P* h, P* z, P* norm) {
  for (int64_t s = blockIdx.x; s < rows; s += gridDim.x) {
    const int64_t at = s * width;
    const P length = static_cast<P>(sqrt(row_dot(width, h + at, h + at)));
    if (threadIdx.x == 0) norm[s] = length;
    for (int64_t j = threadIdx.x; j < width; j += kThreads)
      z[at + j] = length > 0 ? h[at + j] / length : P(0);
  }
}

template <class P>
__global__ void __launch_bounds__(kThreads)
    normalise_backward_kernel(int64_t rows, int64_t width, const P* dz, const P* z, const P* norm,
                              P* dh) {
  for (int64_t s = blockIdx.x; s < rows; s += gridDim.x) {
    const int64_t at = s * width;
    const P along = static_cast<P>(row_dot(width, dz + at, z + at));
    for (int64_t j = threadIdx.x; j < width; j += kThreads)
      dh[at + j] = norm[s] > 0 ? (dz[at + j] - z[at + j] * along) / norm[s] : P(0);
  }
}

}  // namespace

void CudaBackend::embedding_forward(const PackedSequences& packed, ConstTensorView ids,
                                    ConstTensorView tokens, ConstTensorView positions, TensorView y,
                                    TableRows rows, Stream stream) {
  const cudaStream_t s = enter(y.device(), stream);
  dispatch_table(y.dtype(), tokens.dtype(), "embedding_forward", [&]<class T, class P>() {
    lookup_kernel<T, P><<<blocks_for_each(y.rows()), kThreads, 0, s>>>(
        y.rows(), y.columns(), packed.sequences(), packed.cu_seqlens.as<int32_t>(),
        ids.as<int32_t>(), tokens.as<P>(), rows.first, tokens.rows(), pointer_of<P>(positions),
        y.as<T>());
  });
  check_launch();
}

void CudaBackend::embedding_backward(const PackedSequences& packed, ConstTensorView ids,
                                     ConstTensorView dy, double sink_scale, TensorView tokens_sink,
                                     TensorView positions_sink, TableRows rows, Stream stream) {
  const cudaStream_t s = enter(dy.device(), stream);
  const int64_t tokens = dy.rows(), width = dy.columns();
  if (tokens_sink.defined()) {
    const size_t bytes = static_cast<size_t>(tokens) * sizeof(int32_t);
    const Scratch scratch(2 * bytes, dy.device(), stream);
    auto* next = scratch.as<int32_t>();
    int32_t* follows = next + tokens;
    fill_zero(follows, dy.device(), bytes, stream);
    link_kernel<<<blocks_for(tokens), kThreads, 0, s>>>(tokens, ids.as<int32_t>(), next, follows);
    check_launch();
    dispatch_table(dy.dtype(), tokens_sink.dtype(), "embedding_backward", [&]<class T, class S>() {
      scatter_kernel<T, S><<<blocks_for_each(tokens), kThreads, 0, s>>>(
          tokens, width, ids.as<int32_t>(), next, follows, dy.as<T>(),
          static_cast<AccumulateType<T>>(sink_scale), rows.first, tokens_sink.rows(),
          tokens_sink.as<S>());
    });
    check_launch();
  }
  if (positions_sink.defined()) {
    const DType type = positions_sink.dtype();
    dispatch_table(dy.dtype(), type, "embedding_backward", [&]<class T, class S>() {
      position_scatter_kernel<T, S><<<blocks_for_each(packed.longest), kThreads, 0, s>>>(
          packed.longest, width, packed.sequences(), packed.cu_seqlens.as<int32_t>(), dy.as<T>(),
          static_cast<AccumulateType<T>>(sink_scale), positions_sink.as<S>());
    });
    check_launch();
  }
}

void CudaBackend::add_sinusoidal_positions(const PackedSequences& packed, TensorView y,
                                           Stream stream) {
  const cudaStream_t s = enter(y.device(), stream);
  const int64_t n = packed.longest * y.columns();
  dispatch_float(y.dtype(), "add_sinusoidal_positions", [&]<class T>() {
    using P = AccumulateType<T>;
    const Scratch scratch(static_cast<size_t>(n) * sizeof(P), y.device(), stream);
    sinusoid_kernel<P>
        <<<blocks_for(n), kThreads, 0, s>>>(packed.longest, y.columns(), scratch.as<P>());
    check_launch();
    add_positions_kernel<T><<<blocks_for_each(y.rows()), kThreads, 0, s>>>(
        y.rows(), y.columns(), packed.sequences(), packed.cu_seqlens.as<int32_t>(),
        scratch.as<const P>(), y.as<T>());
    check_launch();
  });
}

void CudaBackend::pooling_forward(PoolingKind kind, const PackedSequences& packed,
                                  ConstTensorView x, TensorView h, Stream stream) {
  const cudaStream_t s = enter(x.device(), stream);
  dispatch_float(x.dtype(), "pooling_forward", [&]<class T>() {
    pool_kernel<T><<<blocks_for_each(h.rows()), kThreads, 0, s>>>(
        kind == PoolingKind::mean, h.rows(), h.columns(), packed.cu_seqlens.as<int32_t>(),
        x.as<T>(), h.as<AccumulateType<T>>());
  });
  check_launch();
}

void CudaBackend::pooling_backward(PoolingKind kind, const PackedSequences& packed,
                                   ConstTensorView dh, TensorView dx, Stream stream) {
  const cudaStream_t s = enter(dx.device(), stream);
  dispatch_float(dx.dtype(), "pooling_backward", [&]<class T>() {
    unpool_kernel<T><<<blocks_for_each(dh.rows()), kThreads, 0, s>>>(
        kind == PoolingKind::mean, dh.rows(), dh.columns(), packed.cu_seqlens.as<int32_t>(),
        dh.as<AccumulateType<T>>(), dx.as<T>());
  });
  check_launch();
}

void CudaBackend::normalise_forward(ConstTensorView h, TensorView z, TensorView norm,
                                    Stream stream) {
  const cudaStream_t s = enter(h.device(), stream);
  dispatch_f32_f64(h.dtype(), "normalise_forward", [&]<class P>() {
    normalise_kernel<P><<<blocks_for_each(h.rows()), kThreads, 0, s>>>(
        h.rows(), h.columns(), h.as<P>(), z.as<P>(), norm.as<P>());
  });
  check_launch();
}

void CudaBackend::normalise_backward(ConstTensorView dz, ConstTensorView z, ConstTensorView norm,
                                     TensorView dh, Stream stream) {
  const cudaStream_t s = enter(dz.device(), stream);
  dispatch_f32_f64(dz.dtype(), "normalise_backward", [&]<class P>() {
    normalise_backward_kernel<P><<<blocks_for_each(dz.rows()), kThreads, 0, s>>>(
        dz.rows(), dz.columns(), dz.as<P>(), z.as<P>(), norm.as<P>(), dh.as<P>());
  });
  check_launch();
}

}  // namespace amur::cuda
