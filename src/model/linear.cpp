#include "src/model/linear.h"

#include "kernels/gemm.h"
#include "src/model/step_copies.h"

namespace amur {

TensorView flat_sink(const Parameter& parameter) {
  if (parameter.frozen || !parameter.sink.defined()) return {};
  return parameter.sink.reshape({parameter.sink.elements()});
}

Shape local_shape(const Parameter& parameter) {
  return parameter.value.defined() ? parameter.value.shape() : parameter.global_shape();
}

namespace {

// A tensor like `x` in the parameters' dtype: x itself, or scratch.
TensorView wide(ScratchScope& scratch, TensorView x) {
  const DType dtype = parameter_dtype(x.dtype());
  return x.dtype() == dtype ? x : scratch.tensor(x.shape(), dtype);
}

}  // namespace

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
  const auto convert = [&](TensorView to) { cast(weight, to, context.stream); };
  if (context.copies) return context.copies->get(weight_, weight.shape(), dtype, convert);
  const TensorView converted = scratch.tensor(weight.shape(), dtype);
  convert(converted);
  return converted;
}

Linear::Shared Linear::shared(const Context& context) const {
  if (context.tp_size() == 1) return Shared::none;
  const Slab slab = slab_of(*weight_, context.tp_rank(), context.tp_size());
  AMUR_CHECK(weight_->value.shape() == slab.count, "{}: {} here, {} on tp rank {} of {}",
             weight_->name, weight_->value.shape().text(), slab.count.text(), context.tp_rank(),
             context.tp_size());
  const int axis = weight_->sharding.axis;
  if (axis < 0) return Shared::none;
  return axis < slab.count.dims() - input_axes_ ? Shared::outputs : Shared::inputs;
}

void Linear::forward(const Context& context, ConstTensorView x, TensorView y,
                     ConstTensorView bias) const {
  ScratchScope scratch(*context.scratch);
  const bool partial = shared(context) == Shared::inputs;
  AMUR_CHECK(!bias.defined() || (bias_ == nullptr && !partial), "{}: a bias for a sum",
             weight_->name);
  if (bias_ != nullptr) bias = ConstTensorView(bias_->value.view()).reshape({outputs()});
  if (bias_ != nullptr && !partial && context.copies && y.dtype() != bias.dtype())
    bias = context.copies->get(bias_, bias.shape(), y.dtype(),
                               [&](TensorView to) { cast(bias, to, context.stream); });
  const ConstTensorView weight = weight_as(context, scratch, x.dtype());
  if (!partial && bias.defined())
    return gemm_bias(Transpose::no, Transpose::yes, x, weight, bias, y, context.stream);
  const TensorView sum = partial ? wide(scratch, y) : y;
  gemm(Transpose::no, Transpose::yes, 1, x, weight, 0, sum, context.stream);
  if (!partial) return;
  context.tp->all_reduce(sum, ReduceOp::sum, context.stream);
  if (sum.raw() != y.raw()) cast(sum, y, context.stream);
  if (bias.defined()) add_bias(bias, y.reshape({y.rows(), y.columns()}), context.stream);
}

// A product of f32 is not summed in bf16: the sink is widened, and rounded once.
void Linear::accumulate_weight(const Context& context, ConstTensorView x, ConstTensorView dy,
                               TensorView sink) const {
  ScratchScope scratch(*context.scratch);
  const bool widen = sink.dtype() == DType::bf16 && dy.dtype() != DType::bf16;
  const TensorView sum = widen ? scratch.tensor(sink.shape(), DType::f32) : sink;
  if (widen) cast(sink, sum, context.stream);
  gemm(Transpose::yes, Transpose::no, weight_->sink_scale, dy, x, 1, sum, context.stream);
  if (widen) cast(sum, sink, context.stream);
}

void Linear::backward(const Context& context, ConstTensorView x, ConstTensorView dy, double beta,
                      TensorView dx, bool bias_done) const {
  accumulate(context, x, dy, bias_done);
  if (dx.defined()) backward_input(context, dy, beta, dx);
}

void Linear::accumulate(const Context& context, ConstTensorView x, ConstTensorView dy,
                        bool bias_done) const {
  if (const TensorView sink = flat_sink(*weight_); sink.defined())
    accumulate_weight(context, x, dy, sink.reshape({outputs(), inputs()}));
  if (!bias_done)
    if (const ColumnSink bias = bias_sink(); bias.sink.defined())
      accumulate_column_sums(bias.scale, dy.reshape({dy.rows(), dy.columns()}), bias.sink,
                             context.stream);
}

void Linear::backward_input(const Context& context, ConstTensorView dy, double beta,
                            TensorView dx) const {
  ScratchScope scratch(*context.scratch);
  const bool partial = shared(context) == Shared::outputs;
  const TensorView sum = partial ? wide(scratch, dx) : dx;
  // What is there already, the same on every rank, enters the sum once.
  if (partial && context.tp_rank() > 0)
    beta = 0;
  else if (beta != 0 && sum.raw() != dx.raw())
    cast(dx, sum, context.stream);
  gemm(Transpose::no, Transpose::no, 1, dy, weight_as(context, scratch, dy.dtype()), beta, sum,
       context.stream);
  if (!partial) return;
  context.tp->all_reduce(sum, ReduceOp::sum, context.stream);
  if (sum.raw() != dx.raw()) cast(sum, dx, context.stream);
}

void Linear::list_products(const ProductListing& of, bool adds, std::vector<Product>& list,
                           bool bias) const {
  const int64_t rows = of.tokens, in = inputs(), out = outputs();
  const DType dtype = of.context.dtype, wide = parameter_dtype(dtype);
  const Shared spread = shared(of.context);
  const bool sums = spread == Shared::inputs;
  list.push_back({.transpose_b = Transpose::yes,
                  .m = rows,
                  .n = out,
                  .k = in,
                  .ab = dtype,
                  .c = sums ? wide : dtype,
                  .bias = (bias || bias_ != nullptr) && !sums});
  if (!weight_->frozen)
    list.push_back({.transpose_a = Transpose::yes,
                    .m = out,
                    .n = in,
                    .k = rows,
                    .ab = dtype,
                    .c = dtype == DType::bf16 ? of.sinks : wide,
                    .adds = true});
  const bool partial = spread == Shared::outputs;
  const Product dx{.m = rows, .n = in, .k = out, .ab = dtype, .c = partial ? wide : dtype};
  // Of a group, the first rank alone adds.
  for (const bool added : {false, true})
    if (added == adds || partial) {
      list.push_back(dx);
      list.back().adds = added;
    }
}

}  // namespace amur
