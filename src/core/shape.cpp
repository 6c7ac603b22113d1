#include "src/core/tensor.h"

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

int64_t Shape::elements() const {
  return product(0, dims_);
}

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

}  // namespace amur
