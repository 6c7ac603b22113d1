#include "src/model/linear.h"

#include "kernels/elementwise.h"
#include "kernels/gemm.h"

namespace amur {

TensorView flat_sink(const Parameter& parameter) {
  if (parameter.frozen || !parameter.sink.defined()) return {};
  return parameter.sink.reshape({parameter.sink.elements()});
}

Shape local_shape(const Parameter& parameter) {
  return parameter.value.defined() ? parameter.value.shape() : parameter.global_shape();
}

Linear::Linear(Parameter& weight, Parameter* bias, int input_axes)
    : weight_(&weight), bias_(bias), input_axes_(input_axes) {
  AMUR_CHECK(input_axes > 0 && input_axes < static_cast<int>(weight.axes.size()),
             "{} input axes of {}", input_axes, weight.axes.size());
}

int64_t Linear::inputs() const {
  const Shape shape = local_shape(*weight_);
  return shape.product(shape.dims() - input_axes_, shape.dims());
}

int64_t Linear::outputs() const {
  const Shape shape = local_shape(*weight_);
  return shape.product(0, shape.dims() - input_axes_);
}

double Linear::flops(int64_t rows) const {
  return 2.0 * static_cast<double>(rows) * static_cast<double>(inputs()) *
         static_cast<double>(outputs());
}

ConstTensorView Linear::weight_as(const Context& context, ScratchScope& scratch,
                                  DType dtype) const {
  const ConstTensorView weight =
      ConstTensorView(weight_->value.view()).reshape({outputs(), inputs()});
  if (dtype == weight.dtype()) return weight;
  const TensorView converted = scratch.tensor(weight.shape(), dtype);
  cast(weight, converted, context.stream);
  return converted;
}

void Linear::forward(const Context& context, ConstTensorView x, TensorView y) const {
  ScratchScope scratch(*context.scratch);
  gemm(Transpose::no, Transpose::yes, 1, x, weight_as(context, scratch, x.dtype()), 0, y,
       context.stream);
  if (bias_ != nullptr)
    add_bias(bias_->value.view().reshape({outputs()}), y.reshape({y.rows(), y.columns()}),
             context.stream);
}

void Linear::backward(const Context& context, ConstTensorView x, ConstTensorView dy, double beta,
                      TensorView dx) const {
  ScratchScope scratch(*context.scratch);
  if (const TensorView sink = flat_sink(*weight_); sink.defined())
    gemm(Transpose::yes, Transpose::no, weight_->sink_scale, dy, x, 1,
         sink.reshape({outputs(), inputs()}), context.stream);
  if (bias_ != nullptr)
    if (const TensorView sink = flat_sink(*bias_); sink.defined())
      accumulate_column_sums(bias_->sink_scale, dy.reshape({dy.rows(), dy.columns()}), sink,
                             context.stream);
  if (dx.defined())
    gemm(Transpose::no, Transpose::no, 1, dy, weight_as(context, scratch, dy.dtype()), beta, dx,
         context.stream);
}

}  // namespace amur
