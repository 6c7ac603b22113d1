// Compiled once per instruction set.
#include "kernels/cpu/contrastive.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/simd_math.h"

namespace amur::cpu {
namespace AMUR_ISA {
namespace {

// log(1 + u) for 0 <= u <= 1. f32: 2 atanh(u / (2 + u)) by its series, whose argument is at most
// 1/3.
inline Vec<float> log1p_of_unit(const Vec<float>& u) {
  const Vec<float> w = u / (u + 2.0f);
  const Vec<float> square = w * w;
  Vec<float> p = {};
  for (int k = 7; k >= 0; --k) p = p * square + 2.0f / static_cast<float>(2 * k + 1);
  return w * p;
}
inline Vec<double> log1p_of_unit(const Vec<double>& u) {
  return by_lane(u, [](double v) { return std::log1p(v); });
}

// Logits at a span; beyond the end they are masked.
template <class T>
inline Vec<T> logits_at(const Whole& span, const T* row) {
  return load(row + span.at);
}
template <class T>
inline Vec<T> logits_at(const Partial& span, const T* row) {
  T padded[kLanes<T>];
  for (T& x : padded) x = kMaskedLogit;
  std::memcpy(padded, row + span.at, static_cast<size_t>(span.count) * sizeof(T));
  return load(padded);
}

template <class T>
void row_statistics(const T* row, int64_t n, T* maximum, double* sum) {
  Vec<T> lanes = broadcast(*maximum);
  for_each_vector<T>(n, [&](auto span) {
    const Vec<T> z = logits_at(span, row);
    lanes = z > lanes ? z : lanes;
  });
  const T largest = max_lanes<T>(lanes);
  Vec<T> sums = {};
  for_each_vector<T>(n, [&](auto span) { sums += exp_of(logits_at(span, row) - largest); });
  *sum = *sum * std::exp(static_cast<double>(*maximum) - static_cast<double>(largest)) +
         static_cast<double>(sum_lanes<T>(sums));
  *maximum = largest;
}

template <class T>
void column_statistics(const T* logits, int64_t m, int64_t n, int64_t count, T* maximum,
                       double* sum) {
  alignas(64) T largest[kColumnBlock], sums[kColumnBlock] = {};
  for (int64_t j = 0; j < count; ++j) largest[j] = maximum[j];
  for (int64_t i = 0; i < m; ++i) {
    for_each_vector<T>(count, [&](auto span) {
      const Vec<T> z = logits_at(span, logits + i * n);
      const Vec<T> old = logits_at(span, largest);
      span.store_to(largest, Vec<T>(z > old ? z : old));
    });
  }
  for (int64_t i = 0; i < m; ++i) {
    for_each_vector<T>(count, [&](auto span) {
      const Vec<T> e = exp_of(logits_at(span, logits + i * n) - span.load_from(largest));
      span.store_to(sums, Vec<T>(span.load_from(sums) + e));
    });
  }
  for (int64_t j = 0; j < count; ++j) {
    sum[j] = sum[j] * std::exp(static_cast<double>(maximum[j]) - static_cast<double>(largest[j])) +
             static_cast<double>(sums[j]);
    maximum[j] = largest[j];
  }
}

template <class T, class G>
double softmax_gradient(const T* row, int64_t n, T row_maximum, T row_factor,
                        const T* column_maximum, const T* column_factor, G* gradient) {
  Vec<T> sums = {};
  for_each_vector<T>(n, [&](auto span) {
    const Vec<T> z = logits_at(span, row);
    Vec<T> g = exp_of(z - row_maximum) * row_factor;
    if (column_maximum != nullptr)
      g += exp_of(z - span.load_from(column_maximum)) * span.load_from(column_factor);
    sums += g * z;
    span.store_to(gradient, g);
  });
  return static_cast<double>(sum_lanes<T>(sums));
}

template <class T, class G>
SigmoidSums sigmoid(const T* row, int64_t n, T bias, T weight, G* gradient) {
  Vec<T> loss = {}, sums = {}, sums_z = {};
  for_each_vector<T>(n, [&](auto span) {
    const Vec<T> z = logits_at(span, row);
    const Vec<T> s = z + bias;
    const Vec<T> e = exp_of(s < T{0} ? s : -s);
    loss += (s > T{0} ? s : Vec<T>{}) + log1p_of_unit(e);
    const Vec<T> g = (s < T{0} ? e : broadcast(T{1})) / (e + T{1}) * weight;
    sums += g;
    sums_z += g * z;
    span.store_to(gradient, g);
  });
  return {static_cast<double>(weight) * static_cast<double>(sum_lanes<T>(loss)),
          static_cast<double>(sum_lanes<T>(sums)), static_cast<double>(sum_lanes<T>(sums_z))};
}

}  // namespace
}  // namespace AMUR_ISA

using namespace AMUR_ISA;
AMUR_KERNEL_TABLE(ContrastiveStatistics<float>, row_statistics<float>, column_statistics<float>)
AMUR_KERNEL_TABLE(ContrastiveStatistics<double>, row_statistics<double>, column_statistics<double>)
AMUR_KERNEL_TABLE(ContrastiveGradientsInF32, softmax_gradient<float, float>, sigmoid<float, float>)
AMUR_KERNEL_TABLE(ContrastiveGradientsInBf16, softmax_gradient<float, bf16>, sigmoid<float, bf16>)
AMUR_KERNEL_TABLE(ContrastiveGradientsInF64, softmax_gradient<double, double>,
                  sigmoid<double, double>)

}  // namespace amur::cpu
