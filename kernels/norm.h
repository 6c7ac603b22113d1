// LayerNorm and RMSNorm over the last dimension.
#pragma once

#include "kernels/packed.h"
#include "src/core/tensor.h"

namespace amur {

enum class NormKind : uint8_t { layer, rms };
inline constexpr int64_t kWholeRow = 0;  // as a statistics width: d

//   layer: y = (x - mean) * rstd * gain + bias,  rstd = 1/sqrt(var + eps), var with 1/d
//   rms:   y = x * rstd * gain (+ bias),         rstd = 1/sqrt(mean(x^2) + eps)
// x, y [T, d] activations (y may be x); gain, bias [d] parameter dtype, bias may be undefined;
// mean, rstd [T] parameter dtype, mean undefined for rms. Statistics in f32 (f64), of the first
// `statistics_width` <= d coordinates: mean and var, or mean(x^2), with 1/statistics_width.
void norm_forward(NormKind kind, ConstTensorView x, ConstTensorView gain, ConstTensorView bias,
                  double eps, TensorView y, TensorView mean, TensorView rstd,
                  int64_t statistics_width = kWholeRow, Stream stream = {});

// y = residual + dropout(x), then n = norm(y): the bits of `dropout_add_forward`
// (kernels/elementwise.h) and of `norm_forward`, on a GPU in one pass over memory.  all [T, d]; y
// may be x or residual, n may be residual, but not y
void add_norm_forward(const PackedSequences& packed, DropoutSite site, ConstTensorView x,
                      ConstTensorView residual, TensorView y, NormKind kind, ConstTensorView gain,
                      ConstTensorView bias, double eps, TensorView n, TensorView mean,
                      TensorView rstd, int64_t statistics_width = kWholeRow, Stream stream = {});

// dx = d(loss)/dx (+ residual, where defined: the gradient that flows past the norm); dx may be dy
// or residual. gain_sink += sink_scale * dgain and bias_sink likewise, either may be undefined.
// `x` is the input of the forward.
void norm_backward(NormKind kind, ConstTensorView dy, ConstTensorView x, ConstTensorView gain,
                   ConstTensorView mean, ConstTensorView rstd, ConstTensorView residual,
                   TensorView dx, double sink_scale, TensorView gain_sink, TensorView bias_sink,
                   int64_t statistics_width = kWholeRow, Stream stream = {});

}  // namespace amur
