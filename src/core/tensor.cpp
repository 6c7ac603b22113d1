#include "src/core/tensor.h"

#include <utility>

namespace amur {

Tensor::Tensor(Shape shape, DType dtype, Device device) {
  const size_t bytes = static_cast<size_t>(shape.elements()) * size_of(dtype);
  view_ = TensorView(allocate(bytes, device), shape, dtype, device);
}

Tensor Tensor::zeros(Shape shape, DType dtype, Device device) {
  Tensor t(shape, dtype, device);
  fill_zero(t.view());
  return t;
}

Tensor::Tensor(Tensor&& other) noexcept : view_(std::exchange(other.view_, TensorView())) {}

Tensor& Tensor::operator=(Tensor&& other) noexcept {
  if (this != &other) {
    if (defined()) release(view_.raw(), bytes(), device());
    view_ = std::exchange(other.view_, TensorView());
  }
  return *this;
}

Tensor::~Tensor() {
  if (defined()) release(view_.raw(), bytes(), device());
}

void copy(TensorView to, ConstTensorView from, Stream stream) {
  AMUR_CHECK(to.shape() == from.shape() && to.dtype() == from.dtype(), "copy {} {} to {} {}",
             name_of(from.dtype()), from.shape().text(), name_of(to.dtype()), to.shape().text());
  copy(to.raw(), to.device(), from.raw(), from.device(), from.bytes(), stream);
}

ConstTensorView on_host(ConstTensorView view, Tensor& staging) {
  if (view.device() == Device::cpu()) return view;
  staging = Tensor(view.shape(), view.dtype());
  copy(staging, view);
  return staging;
}

Tensor on_device(Tensor tensor, Device device) {
  if (!tensor.defined() || tensor.device() == device) return tensor;
  Tensor there(tensor.shape(), tensor.dtype(), device);
  copy(there, tensor);
  return there;
}

void fill_zero(TensorView view, Stream stream) {
  fill_zero(view.raw(), view.device(), view.bytes(), stream);
}

}  // namespace amur
