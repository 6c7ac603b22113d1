// Compiled once per instruction set; the plain loops are left to the compiler's vectoriser.
#include "kernels/cpu/optimizer_update.h"

#include <cmath>

#include "kernels/cpu/isa.h"

namespace amur::cpu {
namespace AMUR_ISA {
namespace {

template <class T>
void sign(const T* m, int64_t n, T rate, T decay, T* theta) {
  for (int64_t i = 0; i < n; ++i) theta[i] = sign_step(theta[i], m[i], rate, decay);
}

template <class T>
void sign_relative(const T* m, int64_t n, double rate, double rms_floor, T decay, T* theta) {
  constexpr int64_t kSums = 8;
  double sums[kSums] = {};
  int64_t i = 0;
  for (; i + kSums <= n; i += kSums) {
    for (int64_t k = 0; k < kSums; ++k) {
      const double x = static_cast<double>(theta[i + k]);
      sums[k] += x * x;
    }
  }
  for (; i < n; ++i) sums[0] += static_cast<double>(theta[i]) * static_cast<double>(theta[i]);
  double sum = 0;
  for (double s : sums) sum += s;
  const double rms = n > 0 ? std::sqrt(sum / static_cast<double>(n)) : 0;
  sign(m, n, static_cast<T>(rate * (rms > rms_floor ? rms : rms_floor)), decay, theta);
}

template <class T>
void bounded(const T* m, int64_t n, T rate, T threshold, T* theta) {
  for (int64_t i = 0; i < n; ++i) theta[i] = bounded_step(theta[i], m[i], rate, threshold);
}

template <class T>
void lion(const LionRule<T>& rule, const T* g, int64_t n, T* m, T* theta) {
  for (int64_t i = 0; i < n; ++i) rule(g[i], m[i], theta[i]);
}

template <class T>
void adamw(const AdamWRule<T>& rule, const T* g, int64_t n, T* m, T* v, T* theta) {
  for (int64_t i = 0; i < n; ++i) rule(g[i], m[i], v[i], theta[i]);
}

}  // namespace
}  // namespace AMUR_ISA

using namespace AMUR_ISA;
AMUR_KERNEL_TABLE(OptimizerKernels<float>, sign<float>, sign_relative<float>, bounded<float>,
                  lion<float>, adamw<float>)
AMUR_KERNEL_TABLE(OptimizerKernels<double>, sign<double>, sign_relative<double>, bounded<double>,
                  lion<double>, adamw<double>)

}  // namespace amur::cpu
