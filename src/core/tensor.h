// Contiguous row-major tensors of up to four dimensions.
//
// Contiguous only: every collective, kernel and file selection is then one call. `Tensor` owns and
// moves; views are a pointer with shape, dtype and device, passed by value, and never own.
#pragma once

#include <array>
#include <cstdint>
#include <initializer_list>
#include <string>

#include "src/core/device.h"
#include "src/core/dtype.h"

namespace amur {

class Shape {
 public:
  static constexpr int kMaxDims = 4;

  Shape() = default;  // no dimensions: one element
  Shape(std::initializer_list<int64_t> dims);

  int dims() const { return dims_; }
  int64_t operator[](int i) const { return size_[static_cast<size_t>(i)]; }
  int64_t elements() const;
  // Product of the dimensions first..last-1.
  int64_t product(int first, int last) const;
  Shape with(int axis, int64_t size) const;
  bool operator==(const Shape&) const = default;
  std::string text() const;  // "[1024, 256]"

 private:
  std::array<int64_t, kMaxDims> size_{};
  int dims_ = 0;
};

template <class Void>
class BasicView {
 public:
  static constexpr bool kConst = std::is_const_v<Void>;
  template <class T> using Element = std::conditional_t<kConst, const T, T>;

  BasicView() = default;
  BasicView(Void* data, Shape shape, DType dtype, Device device = Device::cpu())
      : data_(data), shape_(shape), dtype_(dtype), device_(device) {}
  // A mutable view is usable as a const one.
  template <class Other>
    requires(kConst && !std::is_const_v<Other>)
  BasicView(const BasicView<Other>& other)  // NOLINT(google-explicit-constructor)
      : data_(other.raw()), shape_(other.shape()), dtype_(other.dtype()), device_(other.device()) {}

  Void* raw() const { return data_; }
  const Shape& shape() const { return shape_; }
  DType dtype() const { return dtype_; }
  Device device() const { return device_; }
  bool defined() const { return data_ != nullptr; }

  int64_t elements() const { return shape_.elements(); }
  size_t bytes() const { return static_cast<size_t>(elements()) * size_of(dtype_); }
  // First dimension, and everything behind it flattened: how GEMMs and row-wise kernels see it.
  int64_t rows() const { return shape_.dims() == 0 ? 1 : shape_[0]; }
  int64_t columns() const { return shape_.product(1, shape_.dims()); }

  // Typed pointer; the dtype must match.
  template <class T>
  Element<T>* as(CallSite site = CallSite::here()) const {
    if (dtype_ != dtype_of<T>) [[unlikely]]
      throw InternalError(
          fmt::format("tensor is {}, wanted {}", name_of(dtype_), name_of(dtype_of<T>)), site);
    return static_cast<Element<T>*>(data_);
  }

  // Rows first..first+count-1 of dimension 0.
  BasicView slice(int64_t first, int64_t count) const {
    AMUR_CHECK(first >= 0 && count >= 0 && first + count <= rows(), "slice {}+{} of {}", first,
               count, shape_.text());
    using Byte = std::conditional_t<kConst, const std::byte, std::byte>;
    auto* start = static_cast<Byte*>(static_cast<Void*>(data_)) +
                  static_cast<size_t>(first * columns()) * size_of(dtype_);
    return {start, shape_.with(0, count), dtype_, device_};
  }
  // The same elements under another shape.
  BasicView reshape(Shape shape) const {
    AMUR_CHECK(shape.elements() == elements(), "reshape {} to {}", shape_.text(), shape.text());
    return {data_, shape, dtype_, device_};
  }

 private:
  Void* data_ = nullptr;
  Shape shape_;
  DType dtype_ = DType::f32;
  Device device_;
};

using TensorView = BasicView<void>;
using ConstTensorView = BasicView<const void>;

class Tensor {
 public:
  Tensor() = default;
  // Not initialised; see `zeros`.
  Tensor(Shape shape, DType dtype, Device device = Device::cpu());
  static Tensor zeros(Shape shape, DType dtype, Device device = Device::cpu());
  Tensor(Tensor&& other) noexcept;
  Tensor& operator=(Tensor&& other) noexcept;
  ~Tensor();

  TensorView view() { return view_; }
  ConstTensorView view() const { return view_; }
  operator TensorView() { return view_; }             // NOLINT(google-explicit-constructor)
  operator ConstTensorView() const { return view_; }  // NOLINT(google-explicit-constructor)

  const Shape& shape() const { return view_.shape(); }
  DType dtype() const { return view_.dtype(); }
  Device device() const { return view_.device(); }
  int64_t elements() const { return view_.elements(); }
  size_t bytes() const { return view_.bytes(); }
  bool defined() const { return view_.defined(); }
  template <class T> T* as(CallSite site = CallSite::here()) { return view_.as<T>(site); }
  template <class T> const T* as(CallSite site = CallSite::here()) const {
    return view_.as<T>(site);
  }

 private:
  TensorView view_;
};

// Copies elements between views of equal shape and dtype, on any devices.
void copy(TensorView to, ConstTensorView from, Stream stream = {});
void fill_zero(TensorView view, Stream stream = {});
// The view itself where it lies in host memory, else a copy of it, which `staging` owns.
ConstTensorView on_host(ConstTensorView view, Tensor& staging);
// The same elements on a device; the tensor itself where it is there already.
Tensor on_device(Tensor tensor, Device device);

}  // namespace amur
