// A warp takes a row. Where an output may be an input, a lane has read its own elements of every
// input before it writes any of them.
#include "kernels/norm.h"

#include "kernels/cuda/column_sums.cuh"
#include "kernels/cuda/packs.cuh"

namespace amur::cuda {
namespace {


// `mean` is null for RMS norms, `bias` where there is none.
template <class T, class P = AccumulateType<T>>
__global__ void __launch_bounds__(kThreads)
    norm_forward_kernel(int64_t rows, int64_t width, int64_t statistics_width, P eps, const T* x,
                        const P* gain, const P* bias, T* y, P* mean, P* rstd) {
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  for (int64_t t = first_row(); t < rows; t += row_stride()) {
    const T* in = x + t * width;
    T* out = y + t * width;
    P m = 0;
    if (mean) {
      P sum = 0;
      for (int64_t j = lane; j < statistics_width; j += kLanes) sum += static_cast<P>(in[j]);
      m = warp_sum(sum) / static_cast<P>(statistics_width);
    }
    P squares = 0;
    for (int64_t j = lane; j < statistics_width; j += kLanes) {
      const P d = static_cast<P>(in[j]) - m;
      squares += d * d;
    }
    const P r = P(1) / sqrt(warp_sum(squares) / static_cast<P>(statistics_width) + eps);
    if (lane == 0) {
      if (mean) mean[t] = m;
      rstd[t] = r;
    }
    for (int64_t j = lane; j < width; j += kLanes) {
      const P v = (static_cast<P>(in[j]) - m) * r * gain[j];
      out[j] = T(bias ? v + bias[j] : v);
    }
  }
}

// With g = dy * gain and n = (x - mean) * rstd: dx = rstd (g - mean(g) - n mean(g n)); the sums are
// over all coordinates, and only those that the statistics are of feel them.
template <class T, class P = AccumulateType<T>>
__global__ void __launch_bounds__(kThreads)
    norm_backward_kernel(int64_t rows, int64_t width, int64_t statistics_width, const T* dy,
                         const T* x, const P* gain, const P* mean, const P* rstd, const T* residual,
                         T* dx) {
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  for (int64_t t = first_row(); t < rows; t += row_stride()) {
    const int64_t row = t * width;
    const P m = mean ? mean[t] : P(0), r = rstd[t];
    P g_sum = 0, gn_sum = 0;
    for (int64_t j = lane; j < width; j += kLanes) {
      const P g = static_cast<P>(dy[row + j]) * gain[j];
      g_sum += g;
      gn_sum += g * ((static_cast<P>(x[row + j]) - m) * r);
    }
    const P count = static_cast<P>(statistics_width);
    const P g_mean = mean ? warp_sum(g_sum) / count : P(0);
    const P gn_mean = warp_sum(gn_sum) / count;
    for (int64_t j = lane; j < width; j += kLanes) {
      P g = static_cast<P>(dy[row + j]) * gain[j];
      if (j < statistics_width) g = g - g_mean - (static_cast<P>(x[row + j]) - m) * r * gn_mean;
      P d = r * g;
      if (residual) d += static_cast<P>(residual[row + j]);
      dx[row + j] = T(d);
    }
  }
}

// Gradients of gain and bias.
template <class T, class P = AccumulateType<T>>
struct NormTerms {
  int64_t width;
  const T *dy, *x;
  const P *mean, *rstd;

  __device__ void operator()(int64_t t, int64_t j, P (&terms)[2]) const {
    const P d = static_cast<P>(dy[t * width + j]);
    terms[0] = d * ((static_cast<P>(x[t * width + j]) - (mean ? mean[t] : P(0))) * rstd[t]);
    terms[1] = d;
  }
};

}  // namespace

void CudaBackend::norm_forward(NormKind kind, ConstTensorView x, ConstTensorView gain,
                               ConstTensorView bias, double eps, TensorView y, TensorView mean,
                               TensorView rstd, int64_t statistics_width, Stream stream) {
  const cudaStream_t s = enter(x.device(), stream);
  dispatch_float(x.dtype(), "norm_forward", [&]<class T>() {
    using P = AccumulateType<T>;
    norm_forward_kernel<T><<<blocks_for_rows(x.rows()), kThreads, 0, s>>>(
        x.rows(), x.columns(), statistics_width, static_cast<P>(eps), x.as<T>(), gain.as<P>(),
        pointer_of<P>(bias), y.as<T>(), kind == NormKind::layer ? mean.as<P>() : nullptr,
        rstd.as<P>());
  });
  check_launch();
}

// The sinks come first: dx may take the place of dy.
void CudaBackend::norm_backward(NormKind kind, ConstTensorView dy, ConstTensorView x,
                                ConstTensorView gain, ConstTensorView mean, ConstTensorView rstd,
                                ConstTensorView residual, TensorView dx, double sink_scale,
                                TensorView gain_sink, TensorView bias_sink,
                                int64_t statistics_width, Stream stream) {
  const cudaStream_t s = enter(x.device(), stream);
  dispatch_float(x.dtype(), "norm_backward", [&]<class T>() {
    using P = AccumulateType<T>;
    const P* means = kind == NormKind::layer ? mean.as<P>() : nullptr;
    if (gain_sink.defined() || bias_sink.defined()) {
      const NormTerms<T> terms{x.columns(), dy.as<T>(), x.as<T>(), means, rstd.as<P>()};
      add_column_sums<2, P>(x.rows(), x.columns(), terms, static_cast<P>(sink_scale),
                            {{pointer_of<P>(gain_sink), pointer_of<P>(bias_sink)}}, x.device(),
                            stream);
    }
    norm_backward_kernel<T><<<blocks_for_rows(x.rows()), kThreads, 0, s>>>(
        x.rows(), x.columns(), statistics_width, dy.as<T>(), x.as<T>(), gain.as<P>(), means,
        rstd.as<P>(), pointer_of<T>(residual), dx.as<T>());
  });
  check_launch();
}

}  // namespace amur::cuda
