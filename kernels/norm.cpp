#include "kernels/norm.h"

#include "kernels/check.h"
#include "kernels/cpu/norm.h"
#include "kernels/device_kernels.h"
#include "kernels/elementwise.h"

namespace amur {

namespace {

// Checks a forward and returns the statistics width.
int64_t checked_forward(const char* op, NormKind kind, ConstTensorView x, ConstTensorView gain,
                        ConstTensorView bias, TensorView y, TensorView mean, TensorView rstd,
                        int64_t statistics_width) {
  require_device(op, {x, gain, bias, y, mean, rstd});
  const int64_t rows = x.rows(), width = x.columns();
  const DType parameter = parameter_dtype(x.dtype());
  require_matrix(op, "y", y, rows, width, x.dtype());
  require_matrix(op, "gain", gain, width, 1, parameter);
  if (bias.defined()) require_matrix(op, "bias", bias, width, 1, parameter);
  if (kind == NormKind::layer) require_matrix(op, "mean", mean, rows, 1, parameter);
  require_matrix(op, "rstd", rstd, rows, 1, parameter);
  if (statistics_width == kWholeRow) statistics_width = width;
  AMUR_CHECK(statistics_width > 0 && statistics_width <= width, "{}: statistics of {} of {}", op,
             statistics_width, width);
  return statistics_width;
}

}  // namespace

void norm_forward(NormKind kind, ConstTensorView x, ConstTensorView gain, ConstTensorView bias,
                  double eps, TensorView y, TensorView mean, TensorView rstd,
                  int64_t statistics_width, Stream stream) {
  const char* op = "norm_forward";
  statistics_width = checked_forward(op, kind, x, gain, bias, y, mean, rstd, statistics_width);
  if (x.elements() == 0) return;
  if (on_gpu(x))
    return device_kernels().norm_forward(kind, x, gain, bias, eps, y, mean, rstd, statistics_width,
                                         stream);
  dispatch_float(x.dtype(), op, [&]<class T>() {
    using P = AccumulateType<T>;
    cpu::kernels<cpu::NormKernels<T>>().forward(
        {kind, x.rows(), x.columns(), statistics_width, static_cast<P>(eps), x.as<T>(),
         gain.as<P>(), bias.defined() ? bias.as<P>() : nullptr, y.as<T>(),
         kind == NormKind::layer ? mean.as<P>() : nullptr, rstd.as<P>()});
  });
}

void add_norm_forward(const PackedSequences& packed, DropoutSite site, ConstTensorView x,
                      ConstTensorView residual, TensorView y, NormKind kind, ConstTensorView gain,
                      ConstTensorView bias, double eps, TensorView n, TensorView mean,
                      TensorView rstd, int64_t statistics_width, Stream stream) {
  const char* op = "add_norm_forward";
  AMUR_CHECK(n.raw() != y.raw() && residual.defined(), "{}: the sum has to stay", op);
  if (!on_gpu(x)) {
    dropout_add_forward(packed, site, x, residual, y, stream);
    return norm_forward(kind, y, gain, bias, eps, n, mean, rstd, statistics_width, stream);
  }
  statistics_width = checked_forward(op, kind, y, gain, bias, n, mean, rstd, statistics_width);
  require_device(op, {x, residual, y, packed.cu_seqlens, packed.dropout_keys});
  require_matrix(op, "x", x, y.rows(), y.columns(), y.dtype());
  require_matrix(op, "residual", residual, y.rows(), y.columns(), y.dtype());
  require_packed(op, packed, y.rows());
  require_dropout(op, packed, site);
  if (y.elements() == 0) return;
  device_kernels().add_norm_forward(packed, site, x, residual, y, kind, gain, bias, eps, n, mean,
                                    rstd, statistics_width, stream);
}

void norm_backward(NormKind kind, ConstTensorView dy, ConstTensorView x, ConstTensorView gain,
                   ConstTensorView mean, ConstTensorView rstd, ConstTensorView residual,
                   TensorView dx, double sink_scale, TensorView gain_sink, TensorView bias_sink,
                   int64_t statistics_width, Stream stream) {
  const char* op = "norm_backward";
  require_device(op, {x, dy, gain, mean, rstd, residual, dx, gain_sink, bias_sink});
  const int64_t rows = x.rows(), width = x.columns();
  const DType parameter = parameter_dtype(x.dtype());
  require_matrix(op, "dy", dy, rows, width, x.dtype());
  require_matrix(op, "dx", dx, rows, width, x.dtype());
  require_matrix(op, "gain", gain, width, 1, parameter);
  if (kind == NormKind::layer) require_matrix(op, "mean", mean, rows, 1, parameter);
  require_matrix(op, "rstd", rstd, rows, 1, parameter);
  if (residual.defined()) require_matrix(op, "residual", residual, rows, width, x.dtype());
  if (gain_sink.defined()) require_matrix(op, "gain_sink", gain_sink, width, 1, parameter);
  if (bias_sink.defined()) require_matrix(op, "bias_sink", bias_sink, width, 1, parameter);
  if (statistics_width == kWholeRow) statistics_width = width;
  AMUR_CHECK(statistics_width > 0 && statistics_width <= width, "{}: statistics of {} of {}", op,
             statistics_width, width);
  if (x.elements() == 0) return;
  if (on_gpu(x))
    return device_kernels().norm_backward(kind, dy, x, gain, mean, rstd, residual, dx, sink_scale,
                                          gain_sink, bias_sink, statistics_width, stream);
  const int64_t blocks = (rows + cpu::kNormBlock - 1) / cpu::kNormBlock;
  Tensor partial({blocks, 2, width}, parameter, x.device());
  dispatch_float(x.dtype(), op, [&]<class T>() {
    using P = AccumulateType<T>;
    cpu::kernels<cpu::NormKernels<T>>().backward(
        {kind, rows, width, statistics_width, dy.as<T>(), x.as<T>(), gain.as<P>(),
         kind == NormKind::layer ? mean.as<P>() : nullptr, rstd.as<P>(),
         residual.defined() ? residual.as<T>() : nullptr, dx.as<T>(), static_cast<P>(sink_scale),
         gain_sink.defined() ? gain_sink.as<P>() : nullptr,
         bias_sink.defined() ? bias_sink.as<P>() : nullptr, partial.as<P>()});
  });
}

}  // namespace amur
