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

// The value alone, and the value with its slope, of the ungated function or of the gate's.
template <ActivationKind kind, class A>
__device__ A value_of(A x) {
  using Math = ActivationMath<NumberMath<A>>;
  switch (kind) {
    case ActivationKind::gelu:
    case ActivationKind::geglu:
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
template <ActivationKind kind, class A>
__device__ auto both_of(A x) {
  using Math = ActivationMath<NumberMath<A>>;
  switch (kind) {
    case ActivationKind::gelu:
    case ActivationKind::geglu:
      return Math::gelu_slope(x);
    case ActivationKind::gelu_tanh:
      return Math::gelu_tanh_slope(x);
    case ActivationKind::swiglu:
      return Math::silu_slope(x);
    case ActivationKind::relu:
      break;
  }
  return typename Math::Both{value_of<kind>(x), x > A(0) ? A(1) : A(0)};
}

// Of element i of y [n / width, width]: the element of u, and where gated, of its gate.
template <ActivationKind kind>
__device__ int64_t input_of(int64_t i, int64_t width) {
  return is_gated(kind) ? i + i / width * width : i;
}

template <ActivationKind kind, class T, class A = AccumulateType<T>>
__global__ void __launch_bounds__(kThreads)
    forward_kernel(int64_t n, int64_t width, const T* u, T* y) {
  for (int64_t i = first_item(); i < n; i += item_stride()) {
    const int64_t at = input_of<kind>(i, width);
    A v = value_of<kind>(static_cast<A>(u[at]));
    if constexpr (is_gated(kind)) v *= static_cast<A>(u[at + width]);
    y[i] = T(v);
  }
}

// du may be u: a thread has read both halves of its element before it writes them.
template <ActivationKind kind, class T, class A = AccumulateType<T>>
__global__ void __launch_bounds__(kThreads)
    backward_kernel(int64_t n, int64_t width, const T* dy, const T* u, T* du) {
  for (int64_t i = first_item(); i < n; i += item_stride()) {
    const int64_t at = input_of<kind>(i, width);
    const A d = static_cast<A>(dy[i]);
    const auto act = both_of<kind>(static_cast<A>(u[at]));
    if constexpr (is_gated(kind)) {
      const A gate = static_cast<A>(u[at + width]);
      du[at] = T(d * gate * act.slope);
      du[at + width] = T(d * act.value);
    } else {
      du[at] = T(d * act.slope);
    }
  }
}

// The same element by element of y, each asked for once, for the sums of du's columns as it is
// written; where gated, of both halves.
template <ActivationKind kind, class T, class A = AccumulateType<T>>
struct GradientTerms {
  static constexpr int kHalves = is_gated(kind) ? 2 : 1;
  int64_t width;
  const T* dy;
  const T* u;
  T* du;

  __device__ void operator()(int64_t row, int64_t column, A (&terms)[kHalves]) const {
    const int64_t at = kHalves * row * width + column;
    const A d = static_cast<A>(dy[row * width + column]);
    const auto act = both_of<kind>(static_cast<A>(u[at]));
    T written[kHalves];
    if constexpr (is_gated(kind)) {
      written[0] = T(d * static_cast<A>(u[at + width]) * act.slope);
      written[1] = T(d * act.value);
    } else {
      written[0] = T(d * act.slope);
    }
    for (int half = 0; half < kHalves; ++half) {
      du[at + half * width] = written[half];
      terms[half] = static_cast<A>(written[half]);
    }
  }
};

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
  const int64_t n = y.elements(), width = y.columns();
  dispatch(kind, y.dtype(), "activation_forward", [&]<ActivationKind k, class T>() {
    forward_kernel<k, T><<<blocks_for(n), kThreads, 0, s>>>(n, width, u.as<T>(), y.as<T>());
  });
  check_launch();
}

void CudaBackend::activation_backward(ActivationKind kind, ConstTensorView dy, ConstTensorView u,
                                      TensorView du, Stream stream) {
  const cudaStream_t s = enter(dy.device(), stream);
  const int64_t n = dy.elements(), width = dy.columns();
  dispatch(kind, dy.dtype(), "activation_backward", [&]<ActivationKind k, class T>() {
    backward_kernel<k, T>
        <<<blocks_for(n), kThreads, 0, s>>>(n, width, dy.as<T>(), u.as<T>(), du.as<T>());
  });
  check_launch();
}

void CudaBackend::activation_backward_sums(ActivationKind kind, ConstTensorView dy,
                                           ConstTensorView u, TensorView du, double scale,
                                           TensorView sink, Stream stream) {
  const int64_t rows = dy.rows(), width = dy.columns();
  dispatch(kind, dy.dtype(), "activation_backward_sums", [&]<ActivationKind k, class T>() {
    using A = AccumulateType<T>;
    using Terms = GradientTerms<k, T>;
    ColumnSinks<Terms::kHalves, A> sinks;
    for (int half = 0; half < Terms::kHalves; ++half)
      sinks.sink[half] = sink.as<A>() + half * width;
    add_column_sums<Terms::kHalves, A>(rows, width, Terms{width, dy.as<T>(), u.as<T>(), du.as<T>()},
                                       static_cast<A>(scale), sinks, dy.device(), stream);
  });
}

}  // namespace amur::cuda
