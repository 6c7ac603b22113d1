// y = x W^T + b, on one rank or shared by the ranks of a tensor-parallel group (Megatron-LM, arXiv
// 1909.08053).
#pragma once

#include <vector>

#include "kernels/elementwise.h"
#include "kernels/product.h"
#include "src/model/module.h"
#include "src/model/parameter.h"

namespace amur {

// Where the parameter's gradient goes, as a flat row of its local elements; undefined where none is
// wanted.
TensorView flat_sink(const Parameter& parameter);
// The local shape, or the global one before `ParameterSet::allocate`.
Shape local_shape(const Parameter& parameter);

// Of which products are listed: a forward and backward pass of so many tokens, under this context
// (dtype, tp), with weight gradients added to sinks of this dtype.
struct ProductListing {
  Context context;
  int64_t tokens = 0;
  DType sinks = DType::f32;
};

// Keeps nothing: its caller hands the input to the backward again.
//
// Where the weight's sharded axis is one of its outputs, every rank has all of x and dx and its own
// columns of y and dy, and dx is summed over the group. Where it is one of its inputs, every rank
// has its own columns of x and dx and all of y and dy, y is summed over the group, and the bias,
// which every rank has, is added once. Partial sums travel in the parameters' dtype, also under
// bf16, and are rounded once; all ranks get the same bits.
class Linear {
 public:
  // `weight` is stored [out..., in...] with `input_axes` axes of input. `bias` holds one number an
  // output, or is null.
  Linear(Parameter& weight, Parameter* bias, int input_axes);

  // x [T, in], y [T, out], local, of one dtype, bf16 or parameter_dtype() of the weight's.
  // `bias` [out], where defined, stands for the parameter; not where y is summed over the group. It
  // may be of y's dtype, as `gemm_bias` takes it.
  void forward(const Context& context, ConstTensorView x, TensorView y,
               ConstTensorView bias = {}) const;
  // Both of the two below. dx may be undefined, and may be x, which is read before.
  void backward(const Context& context, ConstTensorView x, ConstTensorView dy, double beta,
                TensorView dx, bool bias_done = false) const;
  // The weight's sink += sink_scale * dy^T x, the bias' likewise. Scratch: a copy of the sink,
  // where its dtype is another. `bias_done`: the caller has added the bias' gradient.
  void accumulate(const Context& context, ConstTensorView x, ConstTensorView dy,
                  bool bias_done = false) const;
  // dx = beta * dx + dy W. Scratch: a copy of the weight in the dtype of dy, where that is another
  // and the context has none.
  void backward_input(const Context& context, ConstTensorView dy, double beta, TensorView dx) const;

  // Where the bias' gradient goes, undefined where none is wanted.
  ColumnSink bias_sink() const {
    return bias_ ? ColumnSink{flat_sink(*bias_), bias_->sink_scale} : ColumnSink();
  }

  // Appends the products of both passes; `adds`: the backward's beta is not 0; `bias`: the forward
  // is given one.
  void list_products(const ProductListing& of, bool adds, std::vector<Product>& list,
                     bool bias = false) const;

  int64_t inputs() const;   // local
  int64_t outputs() const;  // local
  // Of one forward on this rank.
  double flops(int64_t rows) const;

 private:
  enum class Shared : uint8_t { none, outputs, inputs };
  // Which side of the weight is spread over the ranks of the context.
  Shared shared(const Context& context) const;
  void accumulate_weight(const Context& context, ConstTensorView x, ConstTensorView dy,
                         TensorView sink) const;
  // The weight as [out, in] in the dtype of the activations.
  ConstTensorView weight_as(const Context& context, ScratchScope& scratch, DType dtype) const;

  Parameter* weight_;
  Parameter* bias_;
  int input_axes_;
};

}  // namespace amur
