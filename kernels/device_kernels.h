// The operations of a GPU back end. Each means what the function of its name in kernels/ says, and
// is called by that function after its checks, never with nothing to do; tensors lie on the GPU.
#pragma once

#include <span>

#include "kernels/activation.h"
#include "kernels/norm.h"
#include "kernels/optimizer_update.h"
#include "kernels/packed.h"
#include "src/core/gpu.h"
#include "src/core/tensor.h"

namespace amur {

class DeviceKernels : public DeviceBackend {
 public:
  // kernels/optimizer_update.h
  virtual void sign_update(ConstTensorView momentum, double rate, double decay, TensorView theta,
                           Stream stream) = 0;
  virtual void sign_update_by_row(ConstTensorView momentum, double rate, double rms_floor,
                                  double decay, TensorView theta, Stream stream) = 0;
  virtual void sign_update_of_rows(ConstTensorView momentum, std::span<const int64_t> rows,
                                   std::span<const double> rates, double rms_floor, double decay,
                                   TensorView theta, Stream stream) = 0;
  virtual void bounded_update(ConstTensorView momentum, double rate, double threshold,
                              TensorView theta, Stream stream) = 0;
  virtual void lion_update(ConstTensorView gradient, const LionStep& step, TensorView momentum,
                           TensorView theta, Stream stream) = 0;
  virtual void adamw_update(ConstTensorView gradient, const AdamWStep& step,
                            TensorView first_moment, TensorView second_moment, TensorView theta,
                            Stream stream) = 0;

  // kernels/activation.h
  virtual void activation_forward(ActivationKind kind, ConstTensorView u, TensorView y,
                                  Stream stream) = 0;
  virtual void activation_backward(ActivationKind kind, ConstTensorView dy, ConstTensorView u,
                                   TensorView du, Stream stream) = 0;

  // kernels/norm.h; statistics_width is between 1 and the width
  virtual void norm_forward(NormKind kind, ConstTensorView x, ConstTensorView gain,
                            ConstTensorView bias, double eps, TensorView y, TensorView mean,
                            TensorView rstd, int64_t statistics_width, Stream stream) = 0;
  virtual void norm_backward(NormKind kind, ConstTensorView dy, ConstTensorView x,
                             ConstTensorView gain, ConstTensorView mean, ConstTensorView rstd,
                             ConstTensorView residual, TensorView dx, double sink_scale,
                             TensorView gain_sink, TensorView bias_sink, int64_t statistics_width,
                             Stream stream) = 0;

  // kernels/elementwise.h; the two that return a value wait for it
  virtual void cast(ConstTensorView from, TensorView to, Stream stream) = 0;
  virtual void axpy(double alpha, ConstTensorView x, TensorView y, Stream stream) = 0;
  virtual void scale(double alpha, TensorView x, Stream stream) = 0;
  virtual void add_bias(ConstTensorView bias, TensorView y, Stream stream) = 0;
  virtual void accumulate_column_sums(double alpha, ConstTensorView dy, TensorView sink,
                                      Stream stream) = 0;
  virtual double sum_of_squares(ConstTensorView x) = 0;
  virtual bool all_finite(ConstTensorView x) = 0;
  // y = residual + dropout(x), forward and backward; residual may be undefined.
  virtual void dropout_add(const PackedSequences& packed, const DropoutSite& site,
                           ConstTensorView x, ConstTensorView residual, TensorView y,
                           Stream stream) = 0;
};

// Of the GPUs in use. The interface check of src/core/gpu.cpp covers this header.
inline DeviceKernels& device_kernels() {
  return static_cast<DeviceKernels&>(gpu_backend());
}

}  // namespace amur
