// y = x W^T + b.
#pragma once

#include "src/model/module.h"
#include "src/model/parameter.h"

namespace amur {

// Where the parameter's gradient goes, as a flat row of its local elements; undefined where none is
// wanted.
TensorView flat_sink(const Parameter& parameter);
// The local shape, or the global one before `ParameterSet::allocate`.
Shape local_shape(const Parameter& parameter);

// Keeps nothing: its caller hands the input to the backward again.
class Linear {
 public:
  // `weight` is stored [out..., in...] with `input_axes` axes of input. `bias` holds one number an
  // output, or is null.
  Linear(Parameter& weight, Parameter* bias, int input_axes);

  // x [T, in], y [T, out] of one dtype, bf16 or that of the parameters.
  void forward(const Context& context, ConstTensorView x, TensorView y) const;
  // dx = beta * dx + dy W; the weight's sink += sink_scale * dy^T x, the bias' likewise. dx may be
  // undefined, and may be x, which is read before. Scratch: a bf16 copy of the weight.
  void backward(const Context& context, ConstTensorView x, ConstTensorView dy, double beta,
                TensorView dx) const;

  int64_t inputs() const;
  int64_t outputs() const;
  // Of one forward.
  double flops(int64_t rows) const;

 private:
  // The weight as [out, in] in the dtype of the activations.
  ConstTensorView weight_as(const Context& context, ScratchScope& scratch, DType dtype) const;

  Parameter* weight_;
  Parameter* bias_;
  int input_axes_;
};

}  // namespace amur
