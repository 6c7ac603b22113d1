// Compiled once per instruction set.
#include "kernels/cpu/activation.h"

#include "kernels/activation_math.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/simd_math.h"

namespace amur::cpu {
namespace AMUR_ISA {

constexpr int64_t kActivationGrain = 8192;  // elements

// Without a gate rows do not matter: one long row.
template <class T, class F>
void map_forward(int64_t elements, const T* u, T* y, F value) {
  using A = AccumulateType<T>;
  constexpr int64_t lanes = kLanes<A>;
  const int64_t vectors = (elements + lanes - 1) / lanes;
  parallel_for(vectors, kActivationGrain / lanes, [&](int64_t first, int64_t last) {
    const int64_t begin = first * lanes, count = std::min(elements, last * lanes) - begin;
    for_each_vector<A>(count,
                       [&](auto at) { at.store_to(y + begin, value(at.load_from(u + begin))); });
  });
}
// y may be null.
template <class T, class F>
void map_backward(int64_t elements, const T* dy, const T* u, T* du, T* y, F both) {
  using A = AccumulateType<T>;
  constexpr int64_t lanes = kLanes<A>;
  const int64_t vectors = (elements + lanes - 1) / lanes;
  parallel_for(vectors, kActivationGrain / lanes, [&](int64_t first, int64_t last) {
    const int64_t begin = first * lanes, count = std::min(elements, last * lanes) - begin;
    for_each_vector<A>(count, [&](auto at) {
      const auto act = both(at.load_from(u + begin));
      at.store_to(du + begin, at.load_from(dy + begin) * act.slope);
      if (y) at.store_to(y + begin, act.value);
    });
  });
}

template <class T, class F>
void gate_forward(int64_t rows, int64_t width, const T* u, T* y, F value) {
  using A = AccumulateType<T>;
  parallel_for(rows, std::max<int64_t>(1, kActivationGrain / width),
               [&](int64_t first, int64_t last) {
                 for (int64_t t = first; t < last; ++t) {
                   const T *in = u + 2 * t * width, *gate = in + width;
                   T* out = y + t * width;
                   for_each_vector<A>(width, [&](auto at) {
                     at.store_to(out, value(at.load_from(in)) * at.load_from(gate));
                   });
                 }
               });
}
template <class T, class F>
void gate_backward(int64_t rows, int64_t width, const T* dy, const T* u, T* du, T* y, F both) {
  using A = AccumulateType<T>;
  parallel_for(rows, std::max<int64_t>(1, kActivationGrain / width),
               [&](int64_t first, int64_t last) {
                 for (int64_t t = first; t < last; ++t) {
                   const T *in = u + 2 * t * width, *gate = in + width, *d_out = dy + t * width;
                   T *d_in = du + 2 * t * width, *d_gate = d_in + width;
                   for_each_vector<A>(width, [&](auto at) {
                     const Vec<A> d = at.load_from(d_out), g = at.load_from(gate);
                     const auto act = both(at.load_from(in));
                     at.store_to(d_in, d * g * act.slope);
                     at.store_to(d_gate, d * act.value);
                     if (y) at.store_to(y + t * width, act.value * g);
                   });
                 }
               });
}

template <class T>
void forward(ActivationKind kind, int64_t rows, int64_t width, const T* u, T* y) {
  using A = AccumulateType<T>;
  using Math = ActivationMath<VectorMath<A>>;
  using V = const Vec<A>&;
  const int64_t n = rows * width;
  switch (kind) {
    case ActivationKind::gelu:
      return map_forward(n, u, y, [](V x) { return Math::gelu(x); });
    case ActivationKind::gelu_tanh:
      return map_forward(n, u, y, [](V x) { return Math::gelu_tanh(x); });
    case ActivationKind::relu:
      return map_forward(n, u, y, [](V x) { return x > A(0) ? x : x * A(0); });
    case ActivationKind::swiglu:
      return gate_forward(rows, width, u, y, [](V x) { return Math::silu(x); });
    case ActivationKind::geglu:
      return gate_forward(rows, width, u, y, [](V x) { return Math::gelu(x); });
  }
}

template <class T>
void backward(ActivationKind kind, int64_t rows, int64_t width, const T* dy, const T* u, T* du,
              T* y) {
  using A = AccumulateType<T>;
  using Math = ActivationMath<VectorMath<A>>;
  using V = const Vec<A>&;
  const int64_t n = rows * width;
  switch (kind) {
    case ActivationKind::gelu:
      return map_backward(n, dy, u, du, y, [](V x) { return Math::gelu_slope(x); });
    case ActivationKind::gelu_tanh:
      return map_backward(n, dy, u, du, y, [](V x) { return Math::gelu_tanh_slope(x); });
    case ActivationKind::relu:
      return map_backward(n, dy, u, du, y, [](V x) -> typename Math::Both {
        return {x > A(0) ? x : x * A(0), x > A(0) ? broadcast(A(1)) : Vec<A>{}};
      });
    case ActivationKind::swiglu:
      return gate_backward(rows, width, dy, u, du, y, [](V x) { return Math::silu_slope(x); });
    case ActivationKind::geglu:
      return gate_backward(rows, width, dy, u, du, y, [](V x) { return Math::gelu_slope(x); });
  }
}

}  // namespace AMUR_ISA

AMUR_KERNEL_TABLE(ActivationKernels<float>, AMUR_ISA::forward, AMUR_ISA::backward)
AMUR_KERNEL_TABLE(ActivationKernels<bf16>, AMUR_ISA::forward, AMUR_ISA::backward)
AMUR_KERNEL_TABLE(ActivationKernels<double>, AMUR_ISA::forward, AMUR_ISA::backward)

}  // namespace amur::cpu
