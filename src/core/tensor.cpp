#include "src/core/tensor.h"

#include <utility>

namespace amur {

Shape::Shape(std::initializer_list<int64_t> dims) {
  AMUR_CHECK(dims.size() <= kMaxDims, "{} dimensions", dims.size());
  for (int64_t d : dims) {
    AMUR_CHECK(d >= 0, "negative dimension {}", d);
    size_[static_cast<size_t>(dims_++)] = d;
  }
}

int64_t Shape::product(int first, int last) const {
  int64_t n = 1;
  for (int i = first; i < last; ++i) n *= size_[static_cast<size_t>(i)];
  return n;
}

int64_t Shape::elements() const { return product(0, dims_); }

Shape Shape::with(int axis, int64_t size) const {
  AMUR_CHECK(axis >= 0 && axis < dims_, "axis {} of {}", axis, text());
  Shape s = *this;
  s.size_[static_cast<size_t>(axis)] = size;
  return s;
}

std::string Shape::text() const {
  std::string s = "[";
  for (int i = 0; i < dims_; ++i) s += fmt::format("{}{}", i ? ", " : "", (*this)[i]);
  return s + "]";
}

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

void fill_zero(TensorView view, Stream stream) {
  fill_zero(view.raw(), view.device(), view.bytes(), stream);
}

}  // namespace amur
