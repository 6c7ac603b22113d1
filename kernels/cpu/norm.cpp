// Compiled once per instruction set.
#include "kernels/cpu/norm.h"

#include "kernels/cpu/parallel.h"
#include "kernels/cpu/simd.h"

namespace amur::cpu {
namespace AMUR_ISA {

template <class T, class P>
void forward_row(const NormForward<T>& a, int64_t t) {
  const P width = static_cast<P>(a.statistics_width);
  const T* x = a.x + t * a.width;
  T* y = a.y + t * a.width;
  P mean = 0;
  if (a.kind == NormKind::layer) {
    Vec<P> sum{};
    for_each_vector<P>(a.statistics_width, [&](auto at) { sum += at.load_from(x); });
    mean = sum_lanes<P>(sum) / width;
    a.mean[t] = mean;
  }
  // A second pass over the row, still in cache: no cancellation as in E[x^2] - E[x]^2.
  Vec<P> squares{};
  for_each_vector<P>(a.statistics_width, [&](auto at) {
    Vec<P> d = at.load_from(x) - mean;
    if constexpr (requires { at.count; }) {
      P lane[kLanes<P>] = {};
      std::memcpy(lane, &d, static_cast<size_t>(at.count) * sizeof(P));
      d = load(lane);  // the padding is 0, not -mean
    }
    squares += d * d;
  });
  const P rstd = P(1) / std::sqrt(sum_lanes<P>(squares) / width + a.eps);
  a.rstd[t] = rstd;
  if (a.bias) {
    for_each_vector<P>(a.width, [&](auto at) {
      at.store_to(y, (at.load_from(x) - mean) * rstd * at.load_from(a.gain) + at.load_from(a.bias));
    });
  } else {
    for_each_vector<P>(a.width, [&](auto at) {
      at.store_to(y, (at.load_from(x) - mean) * rstd * at.load_from(a.gain));
    });
  }
}

template <class T>
void norm_forward_all(const NormForward<T>& a) {
  parallel_for(a.rows, 64, [&](int64_t first, int64_t last) {
    for (int64_t t = first; t < last; ++t) forward_row<T, AccumulateType<T>>(a, t);
  });
}

template <bool has_residual, bool has_gain_sink, bool has_bias_sink, class T>
void backward_row(const NormBackward<T>& a, int64_t t, AccumulateType<T>* gain_sum,
                  AccumulateType<T>* bias_sum) {
  using P = AccumulateType<T>;
  const bool layer = a.kind == NormKind::layer;
  const P mean = layer ? a.mean[t] : P(0), rstd = a.rstd[t];
  const T* x = a.x + t * a.width;
  const T* dy = a.dy + t * a.width;
  T* dx = a.dx + t * a.width;
  // With g = dy * gain and n = (x - mean) * rstd: dx = rstd (g - mean(g) - n mean(g n)); the sums
  // are over all coordinates, and only those that the statistics are of feel them.
  Vec<P> g_sum{}, gn_sum{};
  for_each_vector<P>(a.width, [&](auto at) {
    const Vec<P> d = at.load_from(dy);
    const Vec<P> n = (at.load_from(x) - mean) * rstd;
    const Vec<P> g = d * at.load_from(a.gain);
    g_sum += g;
    gn_sum += g * n;
    if constexpr (has_gain_sink) at.store_to(gain_sum, at.load_from(gain_sum) + d * n);
    if constexpr (has_bias_sink) at.store_to(bias_sum, at.load_from(bias_sum) + d);
  });
  const P width = static_cast<P>(a.statistics_width);
  const P g_mean = layer ? sum_lanes<P>(g_sum) / width : P(0);
  const P gn_mean = sum_lanes<P>(gn_sum) / width;
  for_each_vector<P>(a.statistics_width, [&](auto at) {
    const Vec<P> n = (at.load_from(x) - mean) * rstd;
    Vec<P> d = rstd * (at.load_from(dy) * at.load_from(a.gain) - g_mean - n * gn_mean);
    if constexpr (has_residual) d += at.load_from(a.residual + t * a.width);
    at.store_to(dx, d);
  });
  const int64_t rest = a.statistics_width;
  for_each_vector<P>(a.width - rest, [&](auto at) {
    Vec<P> d = rstd * (at.load_from(dy + rest) * at.load_from(a.gain + rest));
    if constexpr (has_residual) d += at.load_from(a.residual + t * a.width + rest);
    at.store_to(dx + rest, d);
  });
}

template <bool has_residual, bool has_gain_sink, bool has_bias_sink, class T>
void backward_blocks(const NormBackward<T>& a) {
  using P = AccumulateType<T>;
  const int64_t blocks = (a.rows + kNormBlock - 1) / kNormBlock;
  parallel_for(blocks, 1, [&](int64_t first, int64_t last) {
    for (int64_t b = first; b < last; ++b) {
      P* gain_sum = a.partial + 2 * b * a.width;
      P* bias_sum = gain_sum + a.width;
      std::memset(gain_sum, 0, static_cast<size_t>(2 * a.width) * sizeof(P));
      const int64_t end = std::min(a.rows, (b + 1) * kNormBlock);
      for (int64_t t = b * kNormBlock; t < end; ++t)
        backward_row<has_residual, has_gain_sink, has_bias_sink>(a, t, gain_sum, bias_sum);
    }
  });
  const auto add_to = [&](P* sink, int64_t offset) {
    for_each_vector<P>(a.width, [&](auto at) {
      Vec<P> sum{};
      for (int64_t b = 0; b < blocks; ++b)
        sum += at.load_from(a.partial + 2 * b * a.width + offset);
      at.store_to(sink, at.load_from(sink) + a.sink_scale * sum);
    });
  };
  if constexpr (has_gain_sink) add_to(a.gain_sink, 0);
  if constexpr (has_bias_sink) add_to(a.bias_sink, a.width);
}

template <bool has_residual, class T>
void backward_with_sinks(const NormBackward<T>& a) {
  if (a.gain_sink && a.bias_sink) return backward_blocks<has_residual, true, true>(a);
  if (a.gain_sink) return backward_blocks<has_residual, true, false>(a);
  if (a.bias_sink) return backward_blocks<has_residual, false, true>(a);
  backward_blocks<has_residual, false, false>(a);
}

template <class T>
void norm_backward_all(const NormBackward<T>& a) {
  a.residual ? backward_with_sinks<true>(a) : backward_with_sinks<false>(a);
}

}  // namespace AMUR_ISA

AMUR_KERNEL_TABLE(NormKernels<float>, AMUR_ISA::norm_forward_all, AMUR_ISA::norm_backward_all)
AMUR_KERNEL_TABLE(NormKernels<bf16>, AMUR_ISA::norm_forward_all, AMUR_ISA::norm_backward_all)
AMUR_KERNEL_TABLE(NormKernels<double>, AMUR_ISA::norm_forward_all, AMUR_ISA::norm_backward_all)

}  // namespace amur::cpu
