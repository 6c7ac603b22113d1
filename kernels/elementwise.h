// Element-wise operations and reductions over rows. Activations are f32, bf16 or f64; parameters
// and their gradient sinks are f32 (f64 with f64 activations).
#pragma once

#include <span>
#include <vector>

#include "kernels/packed.h"
#include "src/core/tensor.h"

namespace amur {

// to = from, converted between f32, bf16 and f64. Equal element counts.
void cast(ConstTensorView from, TensorView to, Stream stream = {});
// y += alpha * x, same dtype.
void axpy(double alpha, ConstTensorView x, TensorView y, Stream stream = {});
// x *= alpha; with 0 it becomes 0, whatever it held. Of many tensors of one device, which a GPU
// takes at once, dtype by dtype, undefined ones are left out.
void scale(double alpha, TensorView x, Stream stream = {});
void scale(double alpha, std::span<const TensorView> tensors, Stream stream = {});
// y[t, :] += bias[:]        y [T, n], bias [n] parameter dtype
void add_bias(ConstTensorView bias, TensorView y, Stream stream = {});
// sink[:] += alpha * sum_t dy[t, :]      deterministic order
void accumulate_column_sums(double alpha, ConstTensorView dy, TensorView sink, Stream stream = {});
// The same of dy's columns in equal parts, at most kMostParts, each into a sink of its own; those
// whose sink is undefined are left out.
inline constexpr size_t kMostParts = 3;
struct ColumnSink {
  TensorView sink = {};
  double scale = 0;
};
void accumulate_column_sums(ConstTensorView dy, std::span<const ColumnSink> parts,
                            Stream stream = {});
// row = the parts one behind the other, converted to its dtype: equal parts, at most kMostParts,
// those that are undefined 0.  f32 or f64 to that, or to bf16
void join(std::span<const ConstTensorView> parts, TensorView row, Stream stream = {});
// y = gate y + (1 - gate) x        x, y activations, gate [1] parameter dtype
void gate_forward(ConstTensorView gate, ConstTensorView x, TensorView y, Stream stream = {});
// From the gradient dy of that: y, which holds the forward's y on entry, is set to gate * dy and dx
// to (1 - gate) dy; sink [1] += sink_scale * sum dy (y - x) in a fixed order, where defined.
void gate_backward(ConstTensorView gate, ConstTensorView dy, ConstTensorView x, double sink_scale,
                   TensorView y, TensorView dx, TensorView sink, Stream stream = {});
// sqrt(mean(x^2)) of f32 or f64, summed in double in a fixed order; 0 for no elements.
double root_mean_square(ConstTensorView x);
// sum of squares in double, fixed order
double sum_of_squares(ConstTensorView x);
// True if every element of a floating tensor is finite.
bool all_finite(ConstTensorView x);
// The sums of squares of many tensors of one device, which a GPU takes at once, dtype by dtype. An
// undefined one is empty.
std::vector<double> sums_of_squares(std::span<const ConstTensorView> tensors);
// Many tensors of one device, all of them defined: flags[k] = 1 where tensors[k] holds an
// element that is not finite, else it stays as it is.  flags i32 [tensors.size()], on that device
void mark_not_finite(std::span<const ConstTensorView> tensors, TensorView flags,
                     Stream stream = {});

// y = residual + dropout(x); residual may be undefined (0), y may be x or residual.  all [T, n]
void dropout_add_forward(const PackedSequences& packed, DropoutSite site, ConstTensorView x,
                         ConstTensorView residual, TensorView y, Stream stream = {});
// dx = mask/(1-p) * dy; dx may be dy. Where there is a sink, also its scale times the sums of dx's
// columns, on a GPU without reading dx again: the gradient of a bias in front of the dropout.
void dropout_backward(const PackedSequences& packed, DropoutSite site, ConstTensorView dy,
                      TensorView dx, const ColumnSink& sums = {}, Stream stream = {});

}  // namespace amur
