// Compiled once per instruction set; the plain loops are left to the compiler's vectoriser.
#include "kernels/cpu/optimizer_update.h"

#include <cmath>

#include "kernels/cpu/dropout_simd.h"
#include "kernels/cpu/isa.h"

namespace amur::cpu {
namespace AMUR_ISA {
namespace {

// theta[i] = f(i, theta[i]) for i = 0 .. n-1.
template <class W, class F>
void set_each(int64_t n, const Weights<W>& w, const F& f) {
  if constexpr (!std::is_same_v<W, bf16>) {
    for (int64_t i = 0; i < n; ++i) w.theta[i] = f(i, w.theta[i]);
  } else {
    constexpr int64_t kAtOnce = 512;
    uint16_t lanes[kAtOnce + 8 * kDropoutBlocks];
    const GlobalIndex& where = w.rounding.index;
    for (int64_t i = 0; i < n;) {
      const int64_t index = where.of(w.first + i), skipped = index % 8;
      const int64_t left_of_run = where.run - (w.first + i) % where.run;
      const int64_t count = std::min({n - i, kAtOnce - skipped, left_of_run});
      dropout_lanes(w.rounding.key, 0, static_cast<uint64_t>(index / 8), skipped + count, lanes);
      const uint16_t* noise = lanes + skipped;
      for (int64_t k = 0; k < count; ++k)
        w.theta[i + k] = round_stochastic(f(i + k, computed(w.theta[i + k])), noise[k]);
      i += count;
    }
  }
}

template <class W, class M, class T = AccumulateType<W>>
void sign(const M* m, int64_t n, T rate, T decay, const Weights<W>& weights) {
  set_each(
      n, weights, [=](int64_t i, T theta) __attribute__((always_inline)) {
        return sign_step(theta, computed(m[i]), rate, decay);
      });
}

template <class W, class M, class T = AccumulateType<W>>
void sign_relative(const M* m, int64_t n, double rate, double rms_floor, T decay,
                   const Weights<W>& weights) {
  const W* theta = weights.theta;
  constexpr int64_t kSums = 8;
  double sums[kSums] = {};
  int64_t i = 0;
  for (; i + kSums <= n; i += kSums) {
    for (int64_t k = 0; k < kSums; ++k) {
      const double x = static_cast<double>(computed(theta[i + k]));
      sums[k] += x * x;
    }
  }
  for (; i < n; ++i) {
    const double x = static_cast<double>(computed(theta[i]));
    sums[0] += x * x;
  }
  double sum = 0;
  for (double s : sums) sum += s;
  const double rms = n > 0 ? std::sqrt(sum / static_cast<double>(n)) : 0;
  sign<W, M>(m, n, static_cast<T>(rate * (rms > rms_floor ? rms : rms_floor)), decay, weights);
}

template <class W, class T = AccumulateType<W>>
void bounded(const T* m, int64_t n, T rate, T threshold, const Weights<W>& weights) {
  set_each(
      n, weights, [=](int64_t i, T theta) __attribute__((always_inline)) {
        return bounded_step(theta, m[i], rate, threshold);
      });
}

template <class W, class T = AccumulateType<W>>
void lion(const LionRule<T>& rule, const T* g, int64_t n, T* m, const Weights<W>& weights) {
  set_each(
      n, weights, [=](int64_t i, T theta) __attribute__((always_inline)) {
        rule(g[i], m[i], theta);
        return theta;
      });
}

template <class W, class T = AccumulateType<W>>
void adamw(const AdamWRule<T>& rule, const T* g, int64_t n, T* m, T* v, const Weights<W>& weights) {
  set_each(
      n, weights, [=](int64_t i, T theta) __attribute__((always_inline)) {
        rule(g[i], m[i], v[i], theta);
        return theta;
      });
}

// The macro below takes a table's type as one argument.
using SignFloat = SignKernels<float, float>;
using SignDouble = SignKernels<double, double>;
using SignBf16 = SignKernels<bf16, float>;
using SignBf16Both = SignKernels<bf16, bf16>;

}  // namespace
}  // namespace AMUR_ISA

using namespace AMUR_ISA;
AMUR_KERNEL_TABLE(SignFloat, sign, sign_relative)
AMUR_KERNEL_TABLE(SignDouble, sign, sign_relative)
AMUR_KERNEL_TABLE(SignBf16, sign, sign_relative)
AMUR_KERNEL_TABLE(SignBf16Both, sign, sign_relative)
AMUR_KERNEL_TABLE(OptimizerKernels<float>, bounded<float>, lion<float>, adamw<float>)
AMUR_KERNEL_TABLE(OptimizerKernels<double>, bounded<double>, lion<double>, adamw<double>)
AMUR_KERNEL_TABLE(OptimizerKernels<bf16>, bounded<bf16>, lion<bf16>, adamw<bf16>)

}  // namespace amur::cpu
