#include "kernels/activation.h"

#include "kernels/check.h"
#include "kernels/cpu/activation.h"
#include "kernels/device_kernels.h"
#include "kernels/elementwise.h"

namespace amur {

void activation_forward(ActivationKind kind, ConstTensorView u, TensorView y, Stream stream) {
  const char* op = "activation_forward";
  require_device(op, {u, y});
  const int64_t rows = y.rows(), width = y.columns();
  require_matrix(op, "u", u, rows, is_gated(kind) ? 2 * width : width, y.dtype());
  if (y.elements() == 0) return;
  if (on_gpu(y)) return device_kernels().activation_forward(kind, u, y, stream);
  dispatch_float(y.dtype(), op, [&]<class T>() {
    cpu::kernels<cpu::ActivationKernels<T>>().forward(kind, rows, width, u.as<T>(), y.as<T>());
  });
}

void activation_backward(ActivationKind kind, ConstTensorView dy, ConstTensorView u, TensorView du,
                         const ActivationExtras& also, Stream stream) {
  const char* op = "activation_backward";
  require_device(op, {dy, u, du, also.y, also.sink});
  const int64_t rows = dy.rows(), width = dy.columns();
  const int64_t u_width = is_gated(kind) ? 2 * width : width;
  require_matrix(op, "u", u, rows, u_width, dy.dtype());
  require_matrix(op, "du", du, rows, u_width, dy.dtype());
  if (also.y.defined()) require_matrix(op, "y", also.y, rows, width, dy.dtype());
  if (also.sink.defined())
    require_matrix(op, "sink", also.sink, u_width, 1, parameter_dtype(dy.dtype()));
  if (dy.elements() == 0) return;
  if (on_gpu(dy)) return device_kernels().activation_backward(kind, dy, u, du, also, stream);
  dispatch_float(dy.dtype(), op, [&]<class T>() {
    cpu::kernels<cpu::ActivationKernels<T>>().backward(kind, rows, width, dy.as<T>(), u.as<T>(),
                                                       du.as<T>(),
                                                       also.y.defined() ? also.y.as<T>() : nullptr);
  });
  if (also.sink.defined())
    accumulate_column_sums(also.scale, du.reshape({rows, u_width}), also.sink, stream);
}

}  // namespace amur
