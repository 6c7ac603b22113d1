#include "kernels/attention.h"

#include <algorithm>
#include <cmath>

#include "kernels/check.h"
#include "kernels/cpu/attention.h"
#include "kernels/device_kernels.h"
#include "kernels/positions_math.h"

namespace amur {
namespace {

// qkv [T, 3, H, hd] and the lengths of `packed`.
void require_qkv(const char* op, const PackedSequences& packed, ConstTensorView qkv) {
  AMUR_CHECK(qkv.shape().dims() == 4 && qkv.shape()[1] == 3, "{}: qkv is {}, wanted [T, 3, H, hd]",
             op, qkv.shape().text());
  require_packed(op, packed, qkv.rows());
  AMUR_CHECK(packed.longest <= 65535, "{}: a sequence of {} tokens", op, packed.longest);
}

// The half-width that the kernels take: one that reaches to both ends of the longest sequence,
// where all of it is wanted.
int64_t reach(const char* op, const PackedSequences& packed, int64_t window) {
  AMUR_CHECK(window >= 0, "{}: a window of {}", op, window);
  return window == 0 ? packed.longest : std::min(window, packed.longest);
}

template <class T>
cpu::AttentionProblem<T> problem(const PackedSequences& packed, ConstTensorView qkv, double scale,
                                 const DropoutSite& dropout, int64_t window) {
  return {packed.sequences(),
          qkv.shape()[2],
          qkv.shape()[3],
          packed.longest,
          window,
          packed.cu_seqlens.as<int32_t>(),
          static_cast<AccumulateType<T>>(scale),
          dropout.probability > 0 ? packed.dropout_keys.as<int64_t>() : nullptr,
          dropout,
          qkv.as<T>()};
}

}  // namespace

void attention_forward(const PackedSequences& packed, ConstTensorView qkv, double scale,
                       DropoutSite dropout, TensorView o, TensorView lse, int64_t window,
                       Stream stream) {
  const char* op = "attention_forward";
  require_device(op, {qkv, o, lse, packed.cu_seqlens, packed.dropout_keys});
  require_qkv(op, packed, qkv);
  require_dropout(op, packed, dropout);
  const int64_t heads = qkv.shape()[2], size = qkv.shape()[3];
  require_matrix(op, "o", o, qkv.rows(), heads * size, qkv.dtype());
  require_matrix(op, "lse", lse, qkv.rows(), heads, parameter_dtype(qkv.dtype()));
  window = reach(op, packed, window);
  if (qkv.elements() == 0) return;
  if (on_gpu(qkv))
    return device_kernels().attention_forward(packed, qkv, scale, dropout, o, lse, window, stream);
  dispatch_float(qkv.dtype(), op, [&]<class T>() {
    cpu::kernels<cpu::AttentionKernels<T>>().forward(
        problem<T>(packed, qkv, scale, dropout, window), o.as<T>(), lse.as<AccumulateType<T>>());
  });
}

void attention_backward(const PackedSequences& packed, ConstTensorView d_output,
                        ConstTensorView qkv, ConstTensorView output, ConstTensorView lse,
                        double scale, DropoutSite dropout, TensorView dqkv, int64_t window,
                        Stream stream) {
  const char* op = "attention_backward";
  require_device(op, {qkv, d_output, output, lse, dqkv, packed.cu_seqlens, packed.dropout_keys});
  require_qkv(op, packed, qkv);
  require_dropout(op, packed, dropout);
  const int64_t heads = qkv.shape()[2], size = qkv.shape()[3];
  require_matrix(op, "d_output", d_output, qkv.rows(), heads * size, qkv.dtype());
  require_matrix(op, "output", output, qkv.rows(), heads * size, qkv.dtype());
  require_matrix(op, "lse", lse, qkv.rows(), heads, parameter_dtype(qkv.dtype()));
  require_matrix(op, "dqkv", dqkv, qkv.rows(), qkv.columns(), qkv.dtype());
  window = reach(op, packed, window);
  if (qkv.elements() == 0) return;
  if (on_gpu(qkv))
    return device_kernels().attention_backward(packed, d_output, qkv, output, lse, scale, dropout,
                                               dqkv, window, stream);
  dispatch_float(qkv.dtype(), op, [&]<class T>() {
    cpu::kernels<cpu::AttentionKernels<T>>().backward(
        problem<T>(packed, qkv, scale, dropout, window), d_output.as<T>(),
        lse.as<AccumulateType<T>>(), dqkv.as<T>());
  });
}

void rotary(const PackedSequences& packed, double base, int64_t period, bool inverse,
            TensorView qkv, Stream stream) {
  const char* op = "rotary";
  require_device(op, {qkv, packed.cu_seqlens});
  require_qkv(op, packed, qkv);
  const int64_t heads = qkv.shape()[2], size = qkv.shape()[3];
  AMUR_CHECK(size % 2 == 0, "{}: head size {} is odd", op, size);
  AMUR_CHECK(period > 0 && period % 2 == 0, "{}: period {}", op, period);
  if (qkv.elements() == 0) return;
  if (on_gpu(qkv)) return device_kernels().rotary(packed, base, period, inverse, qkv, stream);
  const int64_t half = size / 2;
  Tensor cosines({packed.longest, half}, parameter_dtype(qkv.dtype()), qkv.device());
  Tensor sines({packed.longest, half}, cosines.dtype(), qkv.device());
  dispatch_float(qkv.dtype(), op, [&]<class T>() {
    using P = AccumulateType<T>;
    for (int64_t j = 0; j < half; ++j) {
      const double frequency = rotary_frequency(base, j, period);
      for (int64_t p = 0; p < packed.longest; ++p) {
        const double angle = static_cast<double>(p) * (inverse ? -frequency : frequency);
        cosines.as<P>()[p * half + j] = static_cast<P>(std::cos(angle));
        sines.as<P>()[p * half + j] = static_cast<P>(std::sin(angle));
      }
    }
    cpu::kernels<cpu::AttentionKernels<T>>().rotate(packed.sequences(),
                                                    packed.cu_seqlens.as<int32_t>(), heads, size,
                                                    cosines.as<P>(), sines.as<P>(), qkv.as<T>());
  });
}

}  // namespace amur
