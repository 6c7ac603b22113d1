#include "kernels/elementwise.h"

#include "kernels/cuda/dropout.cuh"
#include "kernels/cuda/held_rows.cuh"
#include "kernels/cuda/pieces.cuh"

namespace amur::cuda {
namespace {

// Packs of a row without end: n elements, a multiple of `pack`.
template <int pack, class F>
__device__ void for_packs_of(int64_t n, const F& f) {
  for (int64_t i = first_item() * pack; i < n; i += item_stride() * pack) f(i);
}

template <int pack, class From, class To>
__global__ void __launch_bounds__(kThreads) cast_kernel(int64_t n, const From* from, To* to) {
  for_packs_of<pack>(n, [=](int64_t i) {
    const auto in = load_pack<pack>(from + i);
    if constexpr (std::is_same_v<To, bf16>) {
      float values[pack];
      widen(in, values);
      store_pack(to + i, rounded<To>(values));
    } else {
      To values[pack];
      widen(in, values);
      store_pack(to + i, rounded<To>(values));
    }
  });
}

// y += alpha x
template <int pack, class T, class A = AccumulateType<T>>
__global__ void __launch_bounds__(kThreads) axpy_kernel(int64_t n, A alpha, const T* x, T* y) {
  for_packs_of<pack>(n, [=](int64_t i) {
    A values[pack], old[pack];
    widen(load_pack<pack>(x + i), values);
    widen(load_pack<pack>(y + i), old);
#pragma unroll
    for (int e = 0; e < pack; ++e) values[e] = old[e] + alpha * values[e];
    store_pack(y + i, rounded<T>(values));
  });
}

template <int pack, class T, class P = AccumulateType<T>>
__global__ void __launch_bounds__(kThreads)
    add_bias_kernel(int64_t rows, int64_t width, const P* bias, T* y) {
  for_packs<pack>(rows, width, [=](int64_t row, int64_t j) {
    P values[pack];
    widen(load_pack<pack>(y + row * width + j), values);
    const auto added = load_pack<pack>(bias + j);
#pragma unroll
    for (int e = 0; e < pack; ++e) values[e] += added.v[e];
    store_pack(y + row * width + j, rounded<T>(values));
  });
}

template <class P>
struct JoinedParts {
  const P* part[kMostParts];
};
template <class T, class P = AccumulateType<T>>
__global__ void __launch_bounds__(kThreads)
    join_kernel(int64_t n, int64_t of_part, const __grid_constant__ JoinedParts<P> parts, T* row) {
  for (int64_t i = first_item(); i < n; i += item_stride()) {
    const P* part = parts.part[i / of_part];
    row[i] = T(part ? part[i % of_part] : P(0));
  }
}

template <int pack, class T, class P = AccumulateType<T>>
struct RowTerms {
  static constexpr int kUnroll = 4;
  int64_t width;
  const T* dy;

  __device__ void operator()(int64_t row, int64_t column, P (&terms)[1][pack]) const {
    widen(load_pack<pack>(dy + row * width + column), terms[0]);
  }
};

template <class T>
struct ListedTensor : Pieces {
  T* data;
};

// f<count>(i): this thread's elements i .. i + count of a piece, 16 bytes at a time where that can
// be.
template <class T, class F>
__device__ void for_packs_in(const T* x, const Piece& piece, const F& f) {
  constexpr int pack = kPack<T>;
  int64_t first = piece.first;
  if (reinterpret_cast<uintptr_t>(x) % 16 == 0) {  // pieces begin at multiples of a pack
    const int64_t end = piece.end - (piece.end - first) % pack;
#pragma unroll 4
    for (int64_t i = first + threadIdx.x * pack; i < end; i += kThreads * pack)
      f.template operator()<pack>(i);
    first = end;
  }
  for (int64_t i = first + threadIdx.x; i < piece.end; i += kThreads) f.template operator()<1>(i);
}

// f(value) for this thread's elements of a piece.
template <class T, class F>
__device__ void for_elements(const T* x, const Piece& piece, const F& f) {
  for_packs_in(x, piece, [&]<int count>(int64_t i) {
    const auto values = load_pack<count>(x + i);
#pragma unroll
    for (int e = 0; e < count; ++e) f(values.v[e]);
  });
}

template <class T, class A = AccumulateType<T>>
__global__ void __launch_bounds__(kThreads)
    scale_kernel(int64_t pieces, int64_t tensors, const ListedTensor<T>* list, A alpha) {
  for (int64_t p = blockIdx.x; p < pieces; p += gridDim.x) {
    const Piece piece = piece_of(list, tensors, p);
    T* const x = list[piece.index].data;
    for_packs_in(x, piece, [&]<int count>(int64_t i) {
      A values[count] = {};
      if (alpha != A(0)) widen(load_pack<count>(x + i), values);
#pragma unroll
      for (int e = 0; e < count; ++e) values[e] *= alpha;
      store_pack(x + i, rounded<T>(values));
    });
  }
}

// One number a piece.
template <class T>
__global__ void __launch_bounds__(kThreads)
    squares_kernel(int64_t pieces, int64_t count, const ListedTensor<const T>* list,
                   double* of_piece) {
  for (int64_t p = blockIdx.x; p < pieces; p += gridDim.x) {
    const Piece piece = piece_of(list, count, p);
    double sum = 0;
    for_elements(list[piece.index].data, piece, [&](T value) {
      const double v = static_cast<double>(value);
      sum += v * v;
    });
    sum = block_sum(sum);
    if (threadIdx.x == 0) of_piece[p] = sum;
  }
}
// results[k] = the sum over the pieces of tensor k, k the block
template <class T>
__global__ void __launch_bounds__(kThreads)
    squares_finish_kernel(const ListedTensor<const T>* list, const double* of_piece,
                          double* results) {
  const ListedTensor<const T>& tensor = list[blockIdx.x];
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
    finite_kernel(int64_t pieces, int64_t count, const ListedTensor<const T>* list,
                  int32_t* flags) {
  for (int64_t p = blockIdx.x; p < pieces; p += gridDim.x) {
    const Piece piece = piece_of(list, count, p);
    bool finite = true;
    for_elements(list[piece.index].data, piece, [&](T value) {
      const A v = static_cast<A>(value);
      finite = finite && v - v == A(0);  // infinite minus infinite is NaN
    });
    if (!finite) flags[piece.index] = 1;
  }
}

template <int pack, class T, class A = AccumulateType<T>>
__global__ void __launch_bounds__(kThreads) add_kernel(int64_t n, const T* x, const T* r, T* y) {
  for_packs_of<pack>(n, [=](int64_t i) {
    A values[pack], past[pack];
    widen(load_pack<pack>(x + i), values);
    widen(load_pack<pack>(r + i), past);
#pragma unroll
    for (int e = 0; e < pack; ++e) values[e] = past[e] + values[e];
    store_pack(y + i, rounded<T>(values));
  });
}

template <int pack, class T, class A = AccumulateType<T>>
__global__ void __launch_bounds__(kThreads)
    dropout_kernel(int64_t tokens, int64_t width, DropoutMasks masks, const T* x, const T* residual,
                   T* y) {
  TokenMasks<A> mask(masks);
  const Addends<pack, T> addends{x, residual};
  const RowRun run = run_of_warp(tokens);
  for (int64_t t = run.first; t < run.end; ++t) {
    mask.go_to(t);
    for (int64_t j = lane_of_warp() * pack; j < width; j += kLanes * pack)
      store_pack(y + t * width + j, addends.sum(mask, j, addends.load(t * width + j)));
  }
}

// Of rows that are held: partial[block, :] = the sum of dx over the block's rows.
template <int pack, class T, class P = AccumulateType<T>>
__global__ void __launch_bounds__(kSumThreads)
    dropout_sums_kernel(int64_t tokens, int64_t width, DropoutMasks masks, const T* dy, T* dx,
                        P* partial) {
  TokenMasks<P> mask(masks);
  constexpr int kPacks = kPacksOfRow<pack, true>;
  P sums[1][kPacks][pack] = {};
  const RowRun run = run_of_warp(tokens);
  for (int64_t t = run.first; t < run.end; ++t) {
    mask.go_to(t);
    Pack<T, pack> in[kPacks];
    for_row<pack, true>(width,
                        [&](int k, int64_t j) { in[k] = load_pack<pack>(dy + t * width + j); });
    for_row<pack, true>(width, [&](int k, int64_t j) {
      P values[pack];
      widen(in[k], values);
      mask.drop(j, values);
      const Pack<T, pack> out = rounded<T>(values);
      store_pack(dx + t * width + j, out);
      widen(out, values);
#pragma unroll
      for (int e = 0; e < pack; ++e) sums[0][k][e] += values[e];
    });
  }
  leave_sums(sums, width, partial);
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
template <class T, class View, class F>
void with_list(std::span<const View> tensors, Stream stream, const F& f) {
  using Listed = ListedTensor<std::remove_pointer_t<decltype(tensors[0].template as<T>())>>;
  std::vector<Listed> list;
  int64_t pieces = 0;
  for (const View& t : tensors) {
    list.push_back({{t.elements(), pieces}, t.template as<T>()});
    pieces += pieces_of(t.elements());
  }
  const Uploaded<Listed> there(list, tensors[0].device(), stream);
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
      using Smaller = std::conditional_t<(sizeof(From) < sizeof(To)), From, To>;
      const auto launch = [&]<int pack>() {
        cast_kernel<pack, From, To>
            <<<blocks_for(n / pack), kThreads, 0, s>>>(n, from.as<From>(), to.as<To>());
      };
      with_packs<Smaller>(n, launch, from.as<From>(), to.as<To>());
    });
  });
  check_launch();
}

void CudaBackend::axpy(double alpha, ConstTensorView x, TensorView y, Stream stream) {
  const cudaStream_t s = enter(y.device(), stream);
  const int64_t n = y.elements();
  dispatch_float(y.dtype(), "axpy", [&]<class T>() {
    const auto launch = [&]<int pack>() {
      axpy_kernel<pack, T><<<blocks_for(n / pack), kThreads, 0, s>>>(
          n, static_cast<AccumulateType<T>>(alpha), x.as<T>(), y.as<T>());
    };
    with_packs<T>(n, launch, x.as<T>(), y.as<T>());
  });
  check_launch();
}

void CudaBackend::scale(double alpha, std::span<const TensorView> tensors, Stream stream) {
  const cudaStream_t s = enter(tensors[0].device(), stream);
  dispatch_float(tensors[0].dtype(), "scale", [&]<class T>() {
    with_list<T>(tensors, stream, [&](const ListedTensor<T>* list, int64_t pieces) {
      scale_kernel<T><<<blocks_for_each(pieces), kThreads, 0, s>>>(
          pieces, std::ssize(tensors), list, static_cast<AccumulateType<T>>(alpha));
      check_launch();
    });
  });
}

void CudaBackend::add_bias(ConstTensorView bias, TensorView y, Stream stream) {
  const cudaStream_t s = enter(y.device(), stream);
  dispatch_float(y.dtype(), "add_bias", [&]<class T>() {
    using P = AccumulateType<T>;
    const auto launch = [&]<int pack>() {
      add_bias_kernel<pack, T><<<blocks_for_rows(y.rows()), kThreads, 0, s>>>(
          y.rows(), y.columns(), bias.as<P>(), y.as<T>());
    };
    with_packs<T>(y.columns(), launch, bias.as<P>(), y.as<T>());
  });
  check_launch();
}

void CudaBackend::accumulate_column_sums(ConstTensorView dy, std::span<const ColumnSink> parts,
                                         Stream stream) {
  dispatch_float(dy.dtype(), "accumulate_column_sums", [&]<class T>() {
    using P = AccumulateType<T>;
    const auto add = [&]<int count>() {
      ColumnSinks<count, P> sinks{};
      for (size_t k = 0; k < parts.size(); ++k) {
        sinks.sink[k] = pointer_of<P>(parts[k].sink);
        sinks.scale[k] = static_cast<P>(parts[k].scale);
      }
      const auto launch = [&]<int pack>() {
        const RowTerms<pack, T> terms{dy.columns(), dy.as<T>()};
        add_column_sums<pack, 1, P>(dy.rows(), dy.columns(), terms, sinks, dy.device(), stream);
      };
      with_packs<T>(dy.columns(), launch, dy.as<T>());
    };
    switch (parts.size()) {
      case 1:
        return add.template operator()<1>();
      case 2:
        return add.template operator()<2>();
      default:
        return add.template operator()<static_cast<int>(kMostParts)>();
    }
  });
}

void CudaBackend::join(std::span<const ConstTensorView> parts, TensorView row, Stream stream) {
  const cudaStream_t s = enter(row.device(), stream);
  const int64_t n = row.elements();
  dispatch_float(row.dtype(), "join", [&]<class T>() {
    JoinedParts<AccumulateType<T>> from{};
    for (size_t k = 0; k < parts.size(); ++k)
      from.part[k] = pointer_of<AccumulateType<T>>(parts[k]);
    join_kernel<T><<<blocks_for(n), kThreads, 0, s>>>(n, n / std::ssize(parts), from, row.as<T>());
  });
  check_launch();
}

std::vector<double> CudaBackend::sums_of_squares(std::span<const ConstTensorView> tensors) {
  const Device device = tensors[0].device();
  const Stream stream(device);
  const cudaStream_t s = enter(device, stream);
  const auto count = static_cast<int64_t>(tensors.size());
  std::vector<double> results(tensors.size());
  dispatch_float(tensors[0].dtype(), "sums_of_squares", [&]<class T>() {
    with_list<T>(tensors, stream, [&](const ListedTensor<const T>* list, int64_t pieces) {
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
    with_list<T>(tensors, stream, [&](const ListedTensor<const T>* list, int64_t pieces) {
      finite_kernel<T><<<blocks_for_each(pieces), kThreads, 0, s>>>(pieces, std::ssize(tensors),
                                                                    list, flags.as<int32_t>());
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
    const T* r = pointer_of<T>(residual);
    if (site.probability > 0) {
      const auto launch = [&]<int pack>() {
        dropout_kernel<pack, T><<<blocks_for_runs(rows, kRowsOfBlock), kThreads, 0, s>>>(
            rows, x.columns(), masks_of(packed, site), x.as<T>(), r, y.as<T>());
      };
      with_packs<T>(x.columns(), launch, x.as<T>(), r, y.as<T>());
    } else if (r) {
      const auto launch = [&]<int pack>() {
        add_kernel<pack, T><<<blocks_for(n / pack), kThreads, 0, s>>>(n, x.as<T>(), r, y.as<T>());
      };
      with_packs<T>(n, launch, x.as<T>(), r, y.as<T>());
    } else if (x.raw() != y.raw()) {
      copy(y.raw(), y.device(), x.raw(), x.device(), x.bytes(), stream);
    }
  });
  check_launch();
}

void CudaBackend::dropout_backward_sums(const PackedSequences& packed, const DropoutSite& site,
                                        ConstTensorView dy, TensorView dx, const ColumnSink& sums,
                                        Stream stream) {
  const cudaStream_t s = enter(dy.device(), stream);
  const int64_t rows = dy.rows(), width = dy.columns();
  const auto launch = [&]<int pack, bool held, class T>() {
    using P = AccumulateType<T>;
    if constexpr (held) {
      const unsigned blocks = blocks_for_runs(rows, kSumWarps, kMostPartialBlocks);
      const Scratch partial(static_cast<size_t>(blocks * width) * sizeof(P), dy.device(), stream);
      dropout_sums_kernel<pack, T><<<blocks, kSumThreads, 0, s>>>(
          rows, width, masks_of(packed, site), dy.as<T>(), dx.as<T>(), partial.as<P>());
      check_launch();
      finish_column_sums<1, P>(blocks, width, partial.as<const P>(),
                               {{sums.sink.as<P>()}, {static_cast<P>(sums.scale)}}, s);
    } else {
      dropout_add(packed, site, dy, {}, dx, stream);
      accumulate_column_sums(dx.reshape({rows, width}), {&sums, 1}, stream);
    }
  };
  dispatch_rows(dy.dtype(), width, "dropout_backward", launch, dy.raw(), dx.raw());
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
