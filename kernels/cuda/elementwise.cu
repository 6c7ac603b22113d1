#include "kernels/elementwise.h"

#include "kernels/cuda/column_sums.cuh"
#include "kernels/cuda/packed.cuh"
#include "kernels/cuda/pieces.cuh"
#include "kernels/dropout_math.h"

namespace amur::cuda {
namespace {

template <class To, class From>
__device__ To convert(From value) {
  if constexpr (std::is_same_v<To, bf16>)
    return bf16(static_cast<float>(value));
  else
    return static_cast<To>(value);
}

template <class From, class To>
__global__ void __launch_bounds__(kThreads) cast_kernel(int64_t n, const From* from, To* to) {
  for (int64_t i = first_item(); i < n; i += item_stride()) to[i] = convert<To>(from[i]);
}

template <class T, class A = AccumulateType<T>>
__global__ void __launch_bounds__(kThreads) axpy_kernel(int64_t n, A alpha, const T* x, T* y) {
  for (int64_t i = first_item(); i < n; i += item_stride())
    y[i] = T(static_cast<A>(y[i]) + alpha * static_cast<A>(x[i]));
}

template <class T, class A = AccumulateType<T>>
__global__ void __launch_bounds__(kThreads) scale_kernel(int64_t n, A alpha, T* x) {
  for (int64_t i = first_item(); i < n; i += item_stride()) x[i] = T(alpha * static_cast<A>(x[i]));
}

template <class T, class P = AccumulateType<T>>
__global__ void __launch_bounds__(kThreads)
    add_bias_kernel(int64_t n, int64_t width, const P* bias, T* y) {
  for (int64_t i = first_item(); i < n; i += item_stride())
    y[i] = T(static_cast<P>(y[i]) + bias[i % width]);
}

template <class T, class P = AccumulateType<T>>
struct RowTerms {
  int64_t width;
  const T* dy;

  __device__ void operator()(int64_t row, int64_t column, P (&terms)[1]) const {
    terms[0] = static_cast<P>(dy[row * width + column]);
  }
};

template <class T>
struct ListedTensor : Pieces {
  const T* data;
};

// One number a piece.
template <class T>
__global__ void __launch_bounds__(kThreads)
    squares_kernel(int64_t pieces, int64_t count, const ListedTensor<T>* list, double* of_piece) {
  for (int64_t p = blockIdx.x; p < pieces; p += gridDim.x) {
    const Piece piece = piece_of(list, count, p);
    const T* x = list[piece.index].data;
    double sum = 0;
    for (int64_t i = piece.first + threadIdx.x; i < piece.end; i += kThreads) {
      const double v = static_cast<double>(x[i]);
      sum += v * v;
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) of_piece[p] = sum;
  }
}
// results[k] = the sum over the pieces of tensor k, k the block
template <class T>
__global__ void __launch_bounds__(kThreads)
    squares_finish_kernel(const ListedTensor<T>* list, const double* of_piece, double* results) {
  const ListedTensor<T>& tensor = list[blockIdx.x];
  const int64_t pieces = (tensor.elements + kPieceElements - 1) / kPieceElements;
  double sum = 0;
  for (int64_t p = threadIdx.x; p < pieces; p += kThreads) sum += of_piece[tensor.first_piece + p];
  sum = block_sum(sum);
  if (threadIdx.x == 0) results[blockIdx.x] = sum;
}
// results[k] = the sum of parts[k, :], k the block; with `add`, what was there stays in
template <bool add>
__global__ void __launch_bounds__(kThreads)
    sum_kernel(int64_t n, const double* parts, double* results) {
  double sum = 0;
  for (int64_t i = threadIdx.x; i < n; i += kThreads) sum += parts[blockIdx.x * n + i];
  sum = block_sum(sum);
  if (threadIdx.x == 0) results[blockIdx.x] = add ? results[blockIdx.x] + sum : sum;
}

// flags[k] = 1 where tensor k is not finite: all who find something write the same.
template <class T, class A = AccumulateType<T>>
__global__ void __launch_bounds__(kThreads)
    finite_kernel(int64_t pieces, int64_t count, const ListedTensor<T>* list, int32_t* flags) {
  for (int64_t p = blockIdx.x; p < pieces; p += gridDim.x) {
    const Piece piece = piece_of(list, count, p);
    const T* x = list[piece.index].data;
    bool finite = true;
    for (int64_t i = piece.first + threadIdx.x; i < piece.end; i += kThreads) {
      const A v = static_cast<A>(x[i]);
      finite = finite && v - v == A(0);  // infinite minus infinite is NaN
    }
    if (!finite) flags[piece.index] = 1;
  }
}

template <class T, class A = AccumulateType<T>>
__global__ void __launch_bounds__(kThreads) add_kernel(int64_t n, const T* x, const T* r, T* y) {
  for (int64_t i = first_item(); i < n; i += item_stride())
    y[i] = T(static_cast<A>(r[i]) + static_cast<A>(x[i]));
}

// A block takes row after row, a thread eight neighbours: the lanes of one Philox block.
template <class T, class A = AccumulateType<T>>
__global__ void __launch_bounds__(kThreads)
    dropout_kernel(int64_t tokens, int64_t width, int64_t sequences, const int32_t* cu,
                   const int64_t* keys, uint64_t layer, uint64_t site, uint32_t threshold, A factor,
                   const T* x, const T* residual, T* y) {
  constexpr int kLanesOfPhilox = 8;
  for (int64_t t = blockIdx.x; t < tokens; t += gridDim.x) {
    const int64_t s = sequence_of(t, sequences, cu);
    const uint64_t key = dropout_key(keys[s], layer, site);
    const auto position = static_cast<uint64_t>(t - cu[s]);
    for (int64_t group = threadIdx.x; group * kLanesOfPhilox < width; group += kThreads) {
      const Philox p = philox(key, position, static_cast<uint64_t>(group));
      for (int lane = 0; lane < kLanesOfPhilox; ++lane) {
        const int64_t j = group * kLanesOfPhilox + lane;
        if (j >= width) break;
        const uint32_t bits = (p.v[lane / 2] >> (16 * (lane % 2))) & 0xffffu;
        A v = bits < threshold ? A(0) : static_cast<A>(x[t * width + j]) * factor;
        if (residual) v = static_cast<A>(residual[t * width + j]) + v;
        y[t * width + j] = T(v);
      }
    }
  }
}

template <class T, class P = AccumulateType<T>>
__global__ void __launch_bounds__(kThreads)
    gate_kernel(int64_t n, const P* gate, const T* x, T* y) {
  const P g = *gate;
  for (int64_t i = first_item(); i < n; i += item_stride())
    y[i] = T(g * static_cast<P>(y[i]) + (1 - g) * static_cast<P>(x[i]));
}

// of_block: the block's part of sum dy (y - x).
template <class T, class P = AccumulateType<T>>
__global__ void __launch_bounds__(kThreads)
    gate_backward_kernel(int64_t n, const P* gate, const T* dy, const T* x, T* y, T* dx,
                         double* of_block) {
  const P g = *gate;
  double sum = 0;
  for (int64_t i = first_item(); i < n; i += item_stride()) {
    const P d = static_cast<P>(dy[i]);
    sum += static_cast<double>(d) * (static_cast<double>(y[i]) - static_cast<double>(x[i]));
    y[i] = T(g * d);
    dx[i] = T((1 - g) * d);
  }
  sum = block_sum(sum);
  if (threadIdx.x == 0) of_block[blockIdx.x] = sum;
}
// *sink += scale * the sum of the parts, by one block
template <class P>
__global__ void __launch_bounds__(kThreads)
    gate_sink_kernel(int64_t n, const double* parts, double scale, P* sink) {
  double sum = 0;
  for (int64_t i = threadIdx.x; i < n; i += kThreads) sum += parts[i];
  sum = block_sum(sum);
  if (threadIdx.x == 0) *sink += static_cast<P>(scale * sum);
}

// Calls f(list on the GPU, number of pieces).
template <class T, class F>
void with_list(std::span<const ConstTensorView> tensors, Stream stream, const F& f) {
  std::vector<ListedTensor<T>> list;
  int64_t pieces = 0;
  for (const ConstTensorView& t : tensors) {
    list.push_back({{t.elements(), pieces}, t.as<T>()});
    pieces += pieces_of(t.elements());
  }
  const Uploaded<ListedTensor<T>> there(list, tensors[0].device(), stream);
  f(there.data(), pieces);
}

}  // namespace

void sums_to_host(const double* parts, int64_t count, int64_t n, double* results, Device device,
                  Stream stream) {
  const cudaStream_t s = enter(device, stream);
  const size_t bytes = static_cast<size_t>(count) * sizeof(double);
  const Scratch scratch(bytes, device, stream);
  sum_kernel<false>
      <<<static_cast<unsigned>(count), kThreads, 0, s>>>(n, parts, scratch.as<double>());
  check_launch();
  copy_to_host(results, scratch.as<double>(), bytes, device, s);
}

void add_sums(const double* parts, int64_t count, int64_t n, double* sums, Device device,
              Stream stream) {
  const cudaStream_t s = enter(device, stream);
  sum_kernel<true><<<static_cast<unsigned>(count), kThreads, 0, s>>>(n, parts, sums);
  check_launch();
}

void CudaBackend::cast(ConstTensorView from, TensorView to, Stream stream) {
  const cudaStream_t s = enter(to.device(), stream);
  const int64_t n = to.elements();
  dispatch_float(from.dtype(), "cast", [&]<class From>() {
    dispatch_float(to.dtype(), "cast", [&]<class To>() {
      cast_kernel<<<blocks_for(n), kThreads, 0, s>>>(n, from.as<From>(), to.as<To>());
    });
  });
  check_launch();
}

void CudaBackend::axpy(double alpha, ConstTensorView x, TensorView y, Stream stream) {
  const cudaStream_t s = enter(y.device(), stream);
  const int64_t n = y.elements();
  dispatch_float(y.dtype(), "axpy", [&]<class T>() {
    axpy_kernel<T><<<blocks_for(n), kThreads, 0, s>>>(n, static_cast<AccumulateType<T>>(alpha),
                                                      x.as<T>(), y.as<T>());
  });
  check_launch();
}

void CudaBackend::scale(double alpha, TensorView x, Stream stream) {
  const cudaStream_t s = enter(x.device(), stream);
  const int64_t n = x.elements();
  dispatch_float(x.dtype(), "scale", [&]<class T>() {
    scale_kernel<T>
        <<<blocks_for(n), kThreads, 0, s>>>(n, static_cast<AccumulateType<T>>(alpha), x.as<T>());
  });
  check_launch();
}

void CudaBackend::add_bias(ConstTensorView bias, TensorView y, Stream stream) {
  const cudaStream_t s = enter(y.device(), stream);
  const int64_t n = y.elements();
  dispatch_float(y.dtype(), "add_bias", [&]<class T>() {
    add_bias_kernel<T><<<blocks_for(n), kThreads, 0, s>>>(n, y.columns(),
                                                          bias.as<AccumulateType<T>>(), y.as<T>());
  });
  check_launch();
}

void CudaBackend::accumulate_column_sums(double alpha, ConstTensorView dy, TensorView sink,
                                         Stream stream) {
  dispatch_float(dy.dtype(), "accumulate_column_sums", [&]<class T>() {
    using P = AccumulateType<T>;
    const RowTerms<T> terms{dy.columns(), dy.as<T>()};
    add_column_sums<1, P>(dy.rows(), dy.columns(), terms, static_cast<P>(alpha), {{sink.as<P>()}},
                          dy.device(), stream);
  });
}

std::vector<double> CudaBackend::sums_of_squares(std::span<const ConstTensorView> tensors) {
  const Device device = tensors[0].device();
  const Stream stream(device);
  const cudaStream_t s = enter(device, stream);
  const auto count = static_cast<int64_t>(tensors.size());
  std::vector<double> results(tensors.size());
  dispatch_float(tensors[0].dtype(), "sums_of_squares", [&]<class T>() {
    with_list<T>(tensors, stream, [&](const ListedTensor<T>* list, int64_t pieces) {
      const Scratch parts(static_cast<size_t>(pieces + count) * sizeof(double), device, stream);
      double* sums = parts.as<double>() + pieces;
      squares_kernel<T>
          <<<blocks_for_each(pieces), kThreads, 0, s>>>(pieces, count, list, parts.as<double>());
      check_launch();
      squares_finish_kernel<T>
          <<<static_cast<unsigned>(count), kThreads, 0, s>>>(list, parts.as<double>(), sums);
      check_launch();
      copy_to_host(results.data(), sums, results.size() * sizeof(double), device, s);
    });
  });
  return results;
}

void CudaBackend::mark_not_finite(std::span<const ConstTensorView> tensors, TensorView flags,
                                  Stream stream) {
  const cudaStream_t s = enter(flags.device(), stream);
  dispatch_float(tensors[0].dtype(), "mark_not_finite", [&]<class T>() {
    with_list<T>(tensors, stream, [&](const ListedTensor<T>* list, int64_t pieces) {
      finite_kernel<T><<<blocks_for_each(pieces), kThreads, 0, s>>>(
          pieces, std::ssize(tensors), list, flags.as<int32_t>());
      check_launch();
    });
  });
}

void CudaBackend::dropout_add(const PackedSequences& packed, const DropoutSite& site,
                              ConstTensorView x, ConstTensorView residual, TensorView y,
                              Stream stream) {
  const cudaStream_t s = enter(x.device(), stream);
  const int64_t n = x.elements(), rows = x.rows();
  dispatch_float(x.dtype(), "dropout_add", [&]<class T>() {
    using A = AccumulateType<T>;
    const T* r = residual.defined() ? residual.as<T>() : nullptr;
    if (site.probability > 0) {
      dropout_kernel<T><<<blocks_for_each(rows), kThreads, 0, s>>>(
          rows, x.columns(), packed.sequences(), packed.cu_seqlens.as<int32_t>(),
          packed.dropout_keys.as<int64_t>(), site.layer, site.site,
          dropout_threshold(site.probability), static_cast<A>(1 / (1 - site.probability)),
          x.as<T>(), r, y.as<T>());
    } else if (r) {
      add_kernel<T><<<blocks_for(n), kThreads, 0, s>>>(n, x.as<T>(), r, y.as<T>());
    } else if (x.raw() != y.raw()) {
      copy(y.raw(), y.device(), x.raw(), x.device(), x.bytes(), stream);
    }
  });
  check_launch();
}

void CudaBackend::gate_forward(ConstTensorView gate, ConstTensorView x, TensorView y,
                               Stream stream) {
  const cudaStream_t s = enter(x.device(), stream);
  const int64_t n = x.elements();
  dispatch_float(x.dtype(), "gate_forward", [&]<class T>() {
    gate_kernel<T>
        <<<blocks_for(n), kThreads, 0, s>>>(n, gate.as<AccumulateType<T>>(), x.as<T>(), y.as<T>());
  });
  check_launch();
}

void CudaBackend::gate_backward(ConstTensorView gate, ConstTensorView dy, ConstTensorView x,
                                double sink_scale, TensorView y, TensorView dx, TensorView sink,
                                Stream stream) {
  const cudaStream_t s = enter(x.device(), stream);
  const int64_t n = x.elements();
  const unsigned blocks = blocks_for(n);
  const Scratch scratch(blocks * sizeof(double), x.device(), stream);
  auto* parts = scratch.as<double>();
  dispatch_float(x.dtype(), "gate_backward", [&]<class T>() {
    using P = AccumulateType<T>;
    gate_backward_kernel<T><<<blocks, kThreads, 0, s>>>(n, gate.as<P>(), dy.as<T>(), x.as<T>(),
                                                        y.as<T>(), dx.as<T>(), parts);
    check_launch();
    if (sink.defined())
      gate_sink_kernel<P><<<1, kThreads, 0, s>>>(blocks, parts, sink_scale, sink.as<P>());
  });
  check_launch();
}

}  // namespace amur::cuda
