#include "kernels/activation.h"

#include "kernels/activation_math.h"
#include "kernels/cuda/column_sums.cuh"

namespace amur::cuda {
namespace {

template <class A>
struct NumberMath {
  using Value = A;
  using Scalar = A;
  __device__ static A exp(A x) { return ::exp(x); }
  __device__ static A erf(A x) { return ::erf(x); }
};

// The normal distribution and its density, with one exponential for both, to 1e-7: for activations
// in bf16, where CUDA's erf would take longer than memory does. By Abramowitz and Stegun, Handbook
// of Mathematical Functions, 7.1.26.
struct Normal {
  float cdf, density;
};
__device__ inline Normal normal_of(float x) {
  const float t = reciprocal_approximate(fmaf(0.3275911f * 0.70710678f, fabsf(x), 1));
  const float e = exp2_approximate(-0.72134752f * x * x);  // exp(-x^2 / 2)
  float p = fmaf(1.061405429f, t, -1.453152027f);
  p = fmaf(p, t, 1.421413741f);
  p = fmaf(p, t, -0.284496736f);
  p = fmaf(p, t, 0.254829592f);
  const float tail = 0.5f * e * (p * t);
  return {x < 0 ? tail : 1 - tail, 0.39894228f * e};
}

// The value alone, and the value with its slope, of the ungated function or of the gate's, for
// activations stored as T.
template <ActivationKind kind, class T, class A = AccumulateType<T>>
__device__ A value_of(A x) {
  using Math = ActivationMath<NumberMath<A>>;
  switch (kind) {
    case ActivationKind::gelu:
    case ActivationKind::geglu:
      if constexpr (std::is_same_v<T, bf16>)
        return x * normal_of(x).cdf;
      else
        return Math::gelu(x);
    case ActivationKind::gelu_tanh:
      return Math::gelu_tanh(x);
    case ActivationKind::swiglu:
      return Math::silu(x);
    case ActivationKind::relu:
      break;
  }
  return x < A(0) ? A(0) : x;  // NaN stays NaN
}
template <ActivationKind kind, class T, class A = AccumulateType<T>>
__device__ auto both_of(A x) {
  using Math = ActivationMath<NumberMath<A>>;
  switch (kind) {
    case ActivationKind::gelu:
    case ActivationKind::geglu:
      if constexpr (std::is_same_v<T, bf16>) {
        const Normal normal = normal_of(x);
        return typename Math::Both{x * normal.cdf, fmaf(x, normal.density, normal.cdf)};
      } else {
        return Math::gelu_slope(x);
      }
    case ActivationKind::gelu_tanh:
      return Math::gelu_tanh_slope(x);
    case ActivationKind::swiglu:
      return Math::silu_slope(x);
    case ActivationKind::relu:
      break;
  }
  return typename Math::Both{value_of<kind, T>(x), x > A(0) ? A(1) : A(0)};
}

// Rows of u: where gated, twice as wide as y's, the gate in the second half.
template <ActivationKind kind>
inline constexpr int kHalves = is_gated(kind) ? 2 : 1;

template <ActivationKind kind, int pack, class T, class A = AccumulateType<T>>
__global__ void __launch_bounds__(kThreads)
    forward_kernel(int64_t rows, int64_t width, const T* u, T* y) {
  for_packs<pack>(rows, width, [=](int64_t row, int64_t j) {
    const T* from = u + kHalves<kind> * row * width + j;
    A values[pack], gate[pack];
    widen(load_pack<pack>(from), values);
    if constexpr (is_gated(kind)) widen(load_pack<pack>(from + width), gate);
#pragma unroll
    for (int e = 0; e < pack; ++e) {
      values[e] = value_of<kind, T>(values[e]);
      if constexpr (is_gated(kind)) values[e] *= gate[e];
    }
    store_pack(y + row * width + j, rounded<T>(values));
  });
}

// Writes du, which may be u, and y where it is not null, which may be dy; sets the terms of the
// sums of du's columns, where gated, of both halves. Each pack is asked for once, and read before
// any of it is written.
template <ActivationKind kind, int pack, class T, class A = AccumulateType<T>>
struct GradientTerms {
  static constexpr int kUnroll = 1;
  int64_t width;
  const T* dy;
  const T* u;
  T *du, *y;

  __device__ void operator()(int64_t row, int64_t j, A (&terms)[kHalves<kind>][pack]) const {
    const int64_t at = kHalves<kind> * row * width + j;
    A d[pack], values[pack], gate[pack];
    widen(load_pack<pack>(dy + row * width + j), d);
    widen(load_pack<pack>(u + at), values);
    if constexpr (is_gated(kind)) widen(load_pack<pack>(u + at + width), gate);
#pragma unroll
    for (int e = 0; e < pack; ++e) {
      const auto act = both_of<kind, T>(values[e]);
      values[e] = act.value;
      if constexpr (is_gated(kind)) {
        values[e] *= gate[e];
        terms[0][e] = d[e] * gate[e] * act.slope;
        terms[1][e] = d[e] * act.value;
      } else {
        terms[0][e] = d[e] * act.slope;
      }
    }
    if (y) store_pack(y + row * width + j, rounded<T>(values));
#pragma unroll
    for (int half = 0; half < kHalves<kind>; ++half) {
      const auto written = rounded<T>(terms[half]);  // what is summed is what is written
      store_pack(du + at + half * width, written);
      widen(written, terms[half]);
    }
  }
};

template <ActivationKind kind, int pack, class T, class A = AccumulateType<T>>
__global__ void __launch_bounds__(kThreads)
    backward_kernel(int64_t rows, int64_t width, GradientTerms<kind, pack, T> gradient) {
  for_packs<pack>(rows, width, [=](int64_t row, int64_t j) {
    A unused[kHalves<kind>][pack];
    gradient(row, j, unused);
  });
}

// Calls f.template operator()<kind, T>().
template <class F>
void dispatch(ActivationKind kind, DType dtype, const char* op, F&& f) {
  using enum ActivationKind;
  dispatch_float(dtype, op, [&]<class T>() {
    switch (kind) {
      case gelu:
        return f.template operator()<gelu, T>();
      case gelu_tanh:
        return f.template operator()<gelu_tanh, T>();
      case relu:
        return f.template operator()<relu, T>();
      case swiglu:
        return f.template operator()<swiglu, T>();
      case geglu:
        return f.template operator()<geglu, T>();
    }
  });
}

}  // namespace

void CudaBackend::activation_forward(ActivationKind kind, ConstTensorView u, TensorView y,
                                     Stream stream) {
  const cudaStream_t s = enter(y.device(), stream);
  const int64_t rows = y.rows(), width = y.columns();
  dispatch(kind, y.dtype(), "activation_forward", [&]<ActivationKind k, class T>() {
    const auto launch = [&]<int pack>() {
      forward_kernel<k, pack, T>
          <<<blocks_for_rows(rows), kThreads, 0, s>>>(rows, width, u.as<T>(), y.as<T>());
    };
    with_packs<T>(width, launch, u.as<T>(), y.as<T>());
  });
  check_launch();
}

void CudaBackend::activation_backward(ActivationKind kind, ConstTensorView dy, ConstTensorView u,
                                      TensorView du, const ActivationExtras& also, Stream stream) {
  const cudaStream_t s = enter(dy.device(), stream);
  const int64_t rows = dy.rows(), width = dy.columns();
  dispatch(kind, dy.dtype(), "activation_backward", [&]<ActivationKind k, class T>() {
    using A = AccumulateType<T>;
    T* y = pointer_of<T>(also.y);
    const auto launch = [&]<int pack>() {
      const GradientTerms<k, pack, T> gradient{width, dy.as<T>(), u.as<T>(), du.as<T>(), y};
      if (!also.sink.defined()) {
        backward_kernel<k, pack, T>
            <<<blocks_for_rows(rows), kThreads, 0, s>>>(rows, width, gradient);
        return check_launch();
      }
      ColumnSinks<kHalves<k>, A> sinks;
      for (int half = 0; half < kHalves<k>; ++half) {
        sinks.sink[half] = also.sink.as<A>() + half * width;
        sinks.scale[half] = static_cast<A>(also.scale);
      }
      add_column_sums<pack, kHalves<k>, A>(rows, width, gradient, sinks, dy.device(), stream);
    };
    with_packs<T>(width, launch, dy.as<T>(), u.as<T>(), du.as<T>(), y);
  });
}

}  // namespace amur::cuda
