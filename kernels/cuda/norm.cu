// A warp takes a run of rows, one after another. Where an output may be an input, a lane has read
// its own elements of every input before it writes any of them.
#include "kernels/norm.h"

#include "kernels/cuda/dropout.cuh"
#include "kernels/cuda/held_rows.cuh"

namespace amur::cuda {
namespace {

// Whether element j + e of a row counts, for e < pack.
struct Counted {
  int left;  // of those that count, from j on
  __device__ Counted(int64_t j, int64_t statistics_width)
      : left(static_cast<int>(statistics_width - j)) {}
  __device__ bool operator()(int e) const { return e < left; }
};

// Where the rows come from: each pack of a row is loaded once, and `first` makes it of that;
// `again` is for one that has been made, where rows are not held.
template <int pack, class T>
struct PlainRows {
  const T* x;

  struct Reader {
    const T* x;
    using Loaded = Pack<T, pack>;
    __device__ void go_to(int64_t) {}
    __device__ Loaded load(int64_t row, int64_t j) const { return load_pack<pack>(x + row + j); }
    __device__ Pack<T, pack> first(int64_t, int64_t, const Loaded& loaded) const { return loaded; }
    __device__ Pack<T, pack> again(int64_t row, int64_t j) const { return load(row, j); }
  };
  __device__ Reader reader() const { return {x}; }
};
// y = residual + dropout(x)
template <int pack, class T, class A = AccumulateType<T>>
struct AddedRows {
  DropoutMasks masks;
  Addends<pack, T> addends;
  T* y;

  struct Reader {
    TokenMasks<A> mask;
    Addends<pack, T> addends;
    T* y;
    using Loaded = typename Addends<pack, T>::Loaded;
    __device__ void go_to(int64_t token) { mask.go_to(token); }
    __device__ Loaded load(int64_t row, int64_t j) const { return addends.load(row + j); }
    __device__ Pack<T, pack> first(int64_t row, int64_t j, const Loaded& loaded) const {
      const Pack<T, pack> sum = addends.sum(mask, j, loaded);
      store_pack(y + row + j, sum);
      return sum;
    }
    __device__ Pack<T, pack> again(int64_t row, int64_t j) const {
      return load_pack<pack>(y + row + j);
    }
  };
  __device__ Reader reader() const { return {TokenMasks<A>(masks), addends, y}; }
};

// `mean` is null for RMS norms, `bias` where there is none.
template <int pack, bool held, class T, class Rows, class P = AccumulateType<T>>
__global__ void __launch_bounds__(kThreads)
    norm_forward_kernel(int64_t rows, int64_t width, int64_t statistics_width, P eps, Rows from,
                        const P* gain, const P* bias, T* n, P* mean, P* rstd) {
  auto reader = from.reader();
  const RowRun run = run_of_warp(rows);
  const P count = static_cast<P>(statistics_width);
  for (int64_t t = run.first; t < run.end; ++t) {
    const int64_t row = t * width;
    reader.go_to(t);
    Pack<T, pack> kept[kPacksOfRow<pack, held>] = {};
    const auto again = [&](int k, int64_t j) {
      if constexpr (held)
        return kept[k];
      else
        return reader.again(row, j);
    };
    typename Rows::Reader::Loaded loaded[kPacksOfRow<pack, held>];
    const auto load = [&](int k, int64_t j) { loaded[k] = reader.load(row, j); };
    if constexpr (held) for_row<pack, held>(width, load);
    P sum = 0;
    for_row<pack, held>(width, [&](int k, int64_t j) {
      if constexpr (!held) load(k, j);
      const Pack<T, pack> x = reader.first(row, j, loaded[k]);
      if constexpr (held) kept[k] = x;
      P values[pack];
      widen(x, values);
      const Counted counted(j, statistics_width);
#pragma unroll
      for (int e = 0; e < pack; ++e)
        if (counted(e)) sum += values[e];
    });
    const P m = mean ? warp_sum(sum) / count : P(0);
    P squares = 0;
    for_row<pack, held>(width, [&](int k, int64_t j) {
      P values[pack];
      widen(again(k, j), values);
      const Counted counted(j, statistics_width);
#pragma unroll
      for (int e = 0; e < pack; ++e) {
        const P d = values[e] - m;
        if (counted(e)) squares += d * d;
      }
    });
    const P r = P(1) / sqrt(warp_sum(squares) / count + eps);
    if (lane_of_warp() == 0) {
      if (mean) mean[t] = m;
      rstd[t] = r;
    }
    for_row<pack, held>(width, [&](int k, int64_t j) {
      const auto gains = load_pack<pack>(gain + j);
      P values[pack];
      widen(again(k, j), values);
#pragma unroll
      for (int e = 0; e < pack; ++e) values[e] = (values[e] - m) * r * gains.v[e];
      if (bias) {
        const auto biases = load_pack<pack>(bias + j);
#pragma unroll
        for (int e = 0; e < pack; ++e) values[e] += biases.v[e];
      }
      store_pack(n + row + j, rounded<T>(values));
    });
  }
}

// Gradients of gain and bias.
template <int pack, class T, class P = AccumulateType<T>>
struct NormTerms {
  static constexpr int kUnroll = 2;
  int64_t width;
  const T *dy, *x;
  const P *mean, *rstd;

  __device__ void operator()(int64_t t, int64_t j, P (&terms)[2][pack]) const {
    P values[pack];
    widen(load_pack<pack>(dy + t * width + j), terms[1]);
    widen(load_pack<pack>(x + t * width + j), values);
    const P m = mean ? mean[t] : P(0), r = rstd[t];
#pragma unroll
    for (int e = 0; e < pack; ++e) terms[0][e] = terms[1][e] * ((values[e] - m) * r);
  }
};

// With g = dy * gain and n = (x - mean) * rstd: dx = rstd (g - mean(g) - n mean(g n)); the sums are
// over all coordinates, and only those that the statistics are of feel them. With `sums`, for rows
// that are held: partial[block, 0, :] = sum dy n and partial[block, 1, :] = sum dy over its rows.
template <int pack, bool held, bool sums, class T, class P = AccumulateType<T>>
__global__ void __launch_bounds__(kSumThreads, 3)
    norm_backward_kernel(int64_t rows, int64_t width, int64_t statistics_width, const T* dy,
                         const T* x, const P* gain, const P* mean, const P* rstd, const T* residual,
                         T* dx, P* partial) {
  static_assert(held || !sums);
  constexpr int kPacks = kPacksOfRow<pack, held>;
  P total[2][sums ? kPacks : 1][pack] = {};  // of gain and bias
  const RowRun run = run_of_warp(rows);
  const P count = static_cast<P>(statistics_width);
  for (int64_t t = run.first; t < run.end; ++t) {
    const int64_t row = t * width;
    const P m = mean ? mean[t] : P(0), r = rstd[t];
    Pack<T, pack> d_kept[kPacks], x_kept[kPacks];
    const auto load = [&](int k, int64_t j) {
      d_kept[k] = load_pack<pack>(dy + row + j);
      x_kept[k] = load_pack<pack>(x + row + j);
    };
    if constexpr (held) for_row<pack, held>(width, load);
    P g_sum = 0, gn_sum = 0;
    for_row<pack, held>(width, [&](int k, int64_t j) {
      if constexpr (!held) load(k, j);
      const auto gains = load_pack<pack>(gain + j);
      P d[pack], n[pack];
      widen(d_kept[k], d);
      widen(x_kept[k], n);
#pragma unroll
      for (int e = 0; e < pack; ++e) {
        n[e] = (n[e] - m) * r;
        const P g = d[e] * gains.v[e];
        g_sum += g;
        gn_sum += g * n[e];
        if constexpr (sums) {
          total[0][k][e] += d[e] * n[e];
          total[1][k][e] += d[e];
        }
      }
    });
    const P g_mean = mean ? warp_sum(g_sum) / count : P(0);
    const P gn_mean = warp_sum(gn_sum) / count;
    for_row<pack, held>(width, [&](int k, int64_t j) {
      if constexpr (!held) load(k, j);
      const auto gains = load_pack<pack>(gain + j);
      const Counted counted(j, statistics_width);
      P values[pack], centred[pack];
      widen(d_kept[k], values);
      widen(x_kept[k], centred);
#pragma unroll
      for (int e = 0; e < pack; ++e) {
        P g = values[e] * gains.v[e];
        if (counted(e)) g = g - g_mean - (centred[e] - m) * r * gn_mean;
        values[e] = r * g;
      }
      if (residual) {
        P past[pack];
        widen(load_pack<pack>(residual + row + j), past);
#pragma unroll
        for (int e = 0; e < pack; ++e) values[e] += past[e];
      }
      store_pack(dx + row + j, rounded<T>(values));
    });
  }
  if constexpr (sums) leave_sums(total, width, partial);
}

}  // namespace

void CudaBackend::norm_forward(NormKind kind, ConstTensorView x, ConstTensorView gain,
                               ConstTensorView bias, double eps, TensorView y, TensorView mean,
                               TensorView rstd, int64_t statistics_width, Stream stream) {
  const cudaStream_t s = enter(x.device(), stream);
  const int64_t rows = x.rows(), width = x.columns();
  const auto launch = [&]<int pack, bool held, class T>() {
    using P = AccumulateType<T>;
    norm_forward_kernel<pack, held, T><<<blocks_for_runs(rows, kRowsOfBlock), kThreads, 0, s>>>(
        rows, width, statistics_width, static_cast<P>(eps), PlainRows<pack, T>{x.as<T>()},
        gain.as<P>(), pointer_of<P>(bias), y.as<T>(),
        kind == NormKind::layer ? mean.as<P>() : nullptr, rstd.as<P>());
  };
  dispatch_rows(x.dtype(), width, "norm_forward", launch, x.raw(), gain.raw(),
                bias.defined() ? bias.raw() : nullptr, y.raw());
  check_launch();
}

void CudaBackend::add_norm_forward(const PackedSequences& packed, const DropoutSite& site,
                                   ConstTensorView x, ConstTensorView residual, TensorView y,
                                   NormKind kind, ConstTensorView gain, ConstTensorView bias,
                                   double eps, TensorView n, TensorView mean, TensorView rstd,
                                   int64_t statistics_width, Stream stream) {
  const cudaStream_t s = enter(x.device(), stream);
  const int64_t rows = x.rows(), width = x.columns();
  const auto launch = [&]<int pack, bool held, class T>() {
    using P = AccumulateType<T>;
    const AddedRows<pack, T> from{masks_of(packed, site), {x.as<T>(), residual.as<T>()}, y.as<T>()};
    norm_forward_kernel<pack, held, T><<<blocks_for_runs(rows, kRowsOfBlock), kThreads, 0, s>>>(
        rows, width, statistics_width, static_cast<P>(eps), from, gain.as<P>(), pointer_of<P>(bias),
        n.as<T>(), kind == NormKind::layer ? mean.as<P>() : nullptr, rstd.as<P>());
  };
  dispatch_rows(x.dtype(), width, "add_norm_forward", launch, x.raw(), residual.raw(), y.raw(),
                gain.raw(), bias.defined() ? bias.raw() : nullptr, n.raw());
  check_launch();
}

// The sinks come first where they have a pass of their own: dx may take the place of dy.
void CudaBackend::norm_backward(NormKind kind, ConstTensorView dy, ConstTensorView x,
                                ConstTensorView gain, ConstTensorView mean, ConstTensorView rstd,
                                ConstTensorView residual, TensorView dx, double sink_scale,
                                TensorView gain_sink, TensorView bias_sink,
                                int64_t statistics_width, Stream stream) {
  const cudaStream_t s = enter(x.device(), stream);
  const int64_t rows = x.rows(), width = x.columns();
  const bool sums = gain_sink.defined() || bias_sink.defined();
  const unsigned blocks = blocks_for_runs(rows, kSumWarps, kMostPartialBlocks);
  const auto launch = [&]<int pack, bool held, class T>() {
    using P = AccumulateType<T>;
    const P* means = kind == NormKind::layer ? mean.as<P>() : nullptr;
    const P scale = static_cast<P>(sink_scale);
    const ColumnSinks<2, P> sinks{{pointer_of<P>(gain_sink), pointer_of<P>(bias_sink)},
                                  {scale, scale}};
    if constexpr (held) {
      if (sums) {
        const Scratch partial(static_cast<size_t>(2 * blocks * width) * sizeof(P), x.device(),
                              stream);
        norm_backward_kernel<pack, true, true, T><<<blocks, kSumThreads, 0, s>>>(
            rows, width, statistics_width, dy.as<T>(), x.as<T>(), gain.as<P>(), means, rstd.as<P>(),
            pointer_of<T>(residual), dx.as<T>(), partial.as<P>());
        check_launch();
        return finish_column_sums<2, P>(blocks, width, partial.as<const P>(), sinks, s);
      }
    } else if (sums) {
      const NormTerms<pack, T> terms{width, dy.as<T>(), x.as<T>(), means, rstd.as<P>()};
      add_column_sums<pack, 2, P>(rows, width, terms, sinks, x.device(), stream);
    }
    norm_backward_kernel<pack, held, false, T>
        <<<blocks_for_runs(rows, kSumWarps), kSumThreads, 0, s>>>(
            rows, width, statistics_width, dy.as<T>(), x.as<T>(), gain.as<P>(), means, rstd.as<P>(),
            pointer_of<T>(residual), dx.as<T>(), static_cast<P*>(nullptr));
  };
  dispatch_rows(x.dtype(), width, "norm_backward", launch, dy.raw(), x.raw(), gain.raw(),
                residual.defined() ? residual.raw() : nullptr, dx.raw());
  check_launch();
}

}  // namespace amur::cuda
