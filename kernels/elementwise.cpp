#include "kernels/elementwise.h"

#include <cmath>

#include "kernels/check.h"
#include "kernels/cpu/dropout.h"
#include "kernels/cpu/elementwise.h"
#include "kernels/device_kernels.h"

namespace amur {
namespace {

template <class T>
const cpu::ElementwiseKernels<T>& elementwise() {
  return cpu::kernels<cpu::ElementwiseKernels<T>>();
}

void require_same(const char* op, ConstTensorView x, ConstTensorView y) {
  AMUR_CHECK(x.defined() && y.defined() && x.dtype() == y.dtype() && x.elements() == y.elements(),
             "{}: {} {} and {} {}", op, name_of(x.dtype()), x.shape().text(), name_of(y.dtype()),
             y.shape().text());
}

void require_dropout_add(const char* op, const PackedSequences& packed, const DropoutSite& site,
                         ConstTensorView x, ConstTensorView residual, TensorView y) {
  require_device(op, {x, residual, y, packed.cu_seqlens, packed.dropout_keys});
  require_matrix(op, "y", y, x.rows(), x.columns(), x.dtype());
  if (residual.defined())
    require_matrix(op, "residual", residual, x.rows(), x.columns(), x.dtype());
  require_packed(op, packed, x.rows());
  require_dropout(op, packed, site);
}

// y = residual + dropout(x)
void dropout_add(const char* op, const PackedSequences& packed, const DropoutSite& site,
                 ConstTensorView x, ConstTensorView residual, TensorView y, Stream stream) {
  require_dropout_add(op, packed, site, x, residual, y);
  if (x.elements() == 0) return;
  if (on_gpu(x)) return device_kernels().dropout_add(packed, site, x, residual, y, stream);
  dispatch_float(x.dtype(), op, [&]<class T>() {
    const T* r = residual.defined() ? residual.as<T>() : nullptr;
    if (site.probability > 0) {
      cpu::kernels<cpu::DropoutKernels<T>>().add(
          {packed.sequences(), x.columns(), packed.cu_seqlens.as<int32_t>(),
           packed.dropout_keys.as<int64_t>(), site, x.as<T>(), r, y.as<T>()});
    } else if (r) {
      elementwise<T>().add(x.elements(), x.as<T>(), r, y.as<T>());
    } else if (x.raw() != y.raw()) {
      copy(y.raw(), y.device(), x.raw(), x.device(), x.bytes(), {});
    }
  });
}

}  // namespace

void cast(ConstTensorView from, TensorView to, Stream stream) {
  const char* op = "cast";
  require_device(op, {from, to});
  const int64_t n = from.elements();
  AMUR_CHECK(to.elements() == n, "cast {} to {}", from.shape().text(), to.shape().text());
  if (n == 0) return;
  if (from.dtype() == to.dtype()) {
    copy(to.raw(), to.device(), from.raw(), from.device(), from.bytes(), stream);
  } else if (on_gpu(to)) {
    device_kernels().cast(from, to, stream);
  } else if (to.dtype() == DType::f32) {
    dispatch_float(from.dtype(), op,
                   [&]<class T>() { elementwise<T>().to_f32(n, from.as<T>(), to.as<float>()); });
  } else if (from.dtype() == DType::f32) {
    dispatch_float(to.dtype(), op,
                   [&]<class T>() { elementwise<T>().from_f32(n, from.as<float>(), to.as<T>()); });
  } else {  // between bf16 and f64
    Tensor middle({n}, DType::f32, from.device());
    cast(from, middle, stream);
    cast(middle, to, stream);
  }
}

void axpy(double alpha, ConstTensorView x, TensorView y, Stream stream) {
  const char* op = "axpy";
  require_device(op, {x, y});
  require_same(op, x, y);
  if (x.elements() == 0) return;
  if (on_gpu(x)) return device_kernels().axpy(alpha, x, y, stream);
  dispatch_float(x.dtype(), op, [&]<class T>() {
    elementwise<T>().axpy(x.elements(), static_cast<AccumulateType<T>>(alpha), x.as<T>(),
                          y.as<T>());
  });
}

namespace {

// Places in a list of the tensors that have elements, all on one device.
template <class View>
std::vector<size_t> with_elements(const char* op, std::span<const View> tensors) {
  std::vector<size_t> places;
  for (size_t i = 0; i < tensors.size(); ++i) {
    if (!tensors[i].defined() || tensors[i].elements() == 0) continue;
    places.push_back(i);
    require_device(op, {tensors[places.front()], tensors[i]});
  }
  return places;
}

// f(tensors, places) for those of each dtype at once.
template <class View, class F>
void by_dtype(std::span<const View> tensors, const std::vector<size_t>& places, const F& f) {
  for (const DType dtype : {DType::f32, DType::bf16, DType::f64}) {
    std::vector<View> some;
    std::vector<size_t> place;
    for (const size_t i : places) {
      if (tensors[i].dtype() != dtype) continue;
      some.push_back(tensors[i]);
      place.push_back(i);
    }
    if (!some.empty()) f(some, place);
  }
}

}  // namespace

void scale(double alpha, TensorView x, Stream stream) {
  scale(alpha, std::span<const TensorView>(&x, 1), stream);
}

void scale(double alpha, std::span<const TensorView> tensors, Stream stream) {
  const char* op = "scale";
  const std::vector<size_t> places = with_elements(op, tensors);
  if (!places.empty() && on_gpu(tensors[places.front()]))
    return by_dtype(tensors, places, [&](const auto& some, const auto&) {
      device_kernels().scale(alpha, some, stream);
    });
  for (const size_t i : places) {
    const TensorView& x = tensors[i];
    if (alpha == 0)
      fill_zero(x);
    else
      dispatch_float(x.dtype(), op, [&]<class T>() {
        elementwise<T>().scale(x.elements(), static_cast<AccumulateType<T>>(alpha), x.as<T>());
      });
  }
}

void add_bias(ConstTensorView bias, TensorView y, Stream stream) {
  const char* op = "add_bias";
  require_device(op, {bias, y});
  require_matrix(op, "bias", bias, y.columns(), 1, parameter_dtype(y.dtype()));
  if (y.elements() == 0) return;
  if (on_gpu(y)) return device_kernels().add_bias(bias, y, stream);
  dispatch_float(y.dtype(), op, [&]<class T>() {
    elementwise<T>().add_bias(y.rows(), y.columns(), bias.as<AccumulateType<T>>(), y.as<T>());
  });
}

void accumulate_column_sums(double alpha, ConstTensorView dy, TensorView sink, Stream stream) {
  const ColumnSink whole{sink, alpha};
  accumulate_column_sums(dy, {&whole, 1}, stream);
}

void accumulate_column_sums(ConstTensorView dy, std::span<const ColumnSink> parts, Stream stream) {
  const char* op = "accumulate_column_sums";
  const auto count = std::ssize(parts);
  AMUR_CHECK(count > 0 && parts.size() <= kMostParts && dy.columns() % count == 0,
             "{}: {} columns in {} parts", op, dy.columns(), count);
  const int64_t rows = dy.rows(), width = dy.columns(), of_part = width / count;
  const DType dtype = parameter_dtype(dy.dtype());
  for (const ColumnSink& part : parts) {
    require_device(op, {dy, part.sink});
    if (part.sink.defined()) require_matrix(op, "sink", part.sink, of_part, 1, dtype);
  }
  if (dy.elements() == 0) return;
  if (on_gpu(dy)) return device_kernels().accumulate_column_sums(dy, parts, stream);
  const int64_t blocks = (rows + cpu::kColumnSumRows - 1) / cpu::kColumnSumRows;
  Tensor partial({blocks, width}, dtype, dy.device());
  dispatch_float(dy.dtype(), op, [&]<class T>() {
    using P = AccumulateType<T>;
    const auto add = [&](P alpha, P* sink) {
      elementwise<T>().column_sums(rows, width, alpha, dy.as<T>(), partial.as<P>(), sink);
    };
    if (count == 1) return add(static_cast<P>(parts[0].scale), parts[0].sink.as<P>());
    Tensor sums = Tensor::zeros({count, of_part}, dtype, dy.device());
    add(1, sums.as<P>());
    for (int64_t i = 0; i < count; ++i)
      if (const ColumnSink& part = parts[static_cast<size_t>(i)]; part.sink.defined())
        axpy(part.scale, sums.view().slice(i, 1).reshape(part.sink.shape()), part.sink, stream);
  });
}

void join(std::span<const ConstTensorView> parts, TensorView row, Stream stream) {
  const char* op = "join";
  const auto count = std::ssize(parts);
  AMUR_CHECK(count > 0 && parts.size() <= kMostParts && row.elements() % count == 0,
             "{}: {} elements of {} parts", op, row.elements(), count);
  const int64_t of_part = row.elements() / count;
  const DType dtype = parameter_dtype(row.dtype());
  for (const ConstTensorView& part : parts) {
    require_device(op, {row, part});
    if (part.defined()) require_matrix(op, "part", part, of_part, 1, dtype);
  }
  if (row.elements() == 0) return;
  if (on_gpu(row)) return device_kernels().join(parts, row, stream);
  const TensorView flat = row.reshape({count, of_part});
  for (int64_t i = 0; i < count; ++i) {
    const TensorView to = flat.slice(i, 1);
    if (parts[static_cast<size_t>(i)].defined())
      cast(parts[static_cast<size_t>(i)], to, stream);
    else
      fill_zero(to, stream);
  }
}

void gate_forward(ConstTensorView gate, ConstTensorView x, TensorView y, Stream stream) {
  const char* op = "gate_forward";
  require_device(op, {gate, x, y});
  require_same(op, x, y);
  require_matrix(op, "gate", gate, 1, 1, parameter_dtype(x.dtype()));
  if (x.elements() == 0) return;
  if (on_gpu(x)) return device_kernels().gate_forward(gate, x, y, stream);
  dispatch_float(x.dtype(), op, [&]<class T>() {
    elementwise<T>().gate(x.elements(), gate.as<AccumulateType<T>>(), x.as<T>(), y.as<T>());
  });
}

void gate_backward(ConstTensorView gate, ConstTensorView dy, ConstTensorView x, double sink_scale,
                   TensorView y, TensorView dx, TensorView sink, Stream stream) {
  const char* op = "gate_backward";
  require_device(op, {gate, dy, x, y, dx, sink});
  require_same(op, x, dy);
  require_same(op, x, y);
  require_same(op, x, dx);
  require_matrix(op, "gate", gate, 1, 1, parameter_dtype(x.dtype()));
  if (sink.defined()) require_matrix(op, "sink", sink, 1, 1, gate.dtype());
  if (x.elements() == 0) return;
  if (on_gpu(x))
    return device_kernels().gate_backward(gate, dy, x, sink_scale, y, dx, sink, stream);
  dispatch_float(x.dtype(), op, [&]<class T>() {
    using P = AccumulateType<T>;
    const double sum = elementwise<T>().gate_backward(x.elements(), gate.as<P>(), dy.as<T>(),
                                                      x.as<T>(), y.as<T>(), dx.as<T>());
    if (sink.defined()) *sink.as<P>() += static_cast<P>(sink_scale * sum);
  });
}

double root_mean_square(ConstTensorView x) {
  if (x.elements() == 0) return 0;
  return std::sqrt(sum_of_squares(x) / static_cast<double>(x.elements()));
}

double sum_of_squares(ConstTensorView x) {
  return sums_of_squares({&x, 1})[0];
}

bool all_finite(ConstTensorView x) {
  Tensor flag = Tensor::zeros({1}, DType::i32, x.device()), staging;
  mark_not_finite({&x, 1}, flag);
  return on_host(flag, staging).as<int32_t>()[0] == 0;
}

std::vector<double> sums_of_squares(std::span<const ConstTensorView> tensors) {
  const char* op = "sums_of_squares";
  std::vector<double> sums(tensors.size(), 0);
  const std::vector<size_t> places = with_elements(op, tensors);
  if (!places.empty() && on_gpu(tensors[places.front()])) {
    by_dtype(tensors, places, [&](const auto& some, const auto& place) {
      const std::vector<double> found = device_kernels().sums_of_squares(some);
      for (size_t i = 0; i < found.size(); ++i) sums[place[i]] = found[i];
    });
    return sums;
  }
  for (const size_t i : places)
    sums[i] = dispatch_float(tensors[i].dtype(), op, [&]<class T>() {
      return elementwise<T>().sum_of_squares(tensors[i].elements(), tensors[i].as<T>());
    });
  return sums;
}

void mark_not_finite(std::span<const ConstTensorView> tensors, TensorView flags, Stream stream) {
  const char* op = "mark_not_finite";
  AMUR_CHECK(flags.elements() == std::ssize(tensors), "{}: {} flags for {} tensors", op,
             flags.elements(), tensors.size());
  for (const ConstTensorView& x : tensors) require_device(op, {x, flags});
  if (on_gpu(flags)) {  // neighbours of one dtype at once
    for (size_t first = 0, end = 0; first < tensors.size(); first = end) {
      while (end < tensors.size() && tensors[end].dtype() == tensors[first].dtype()) ++end;
      device_kernels().mark_not_finite(
          tensors.subspan(first, end - first),
          flags.slice(static_cast<int64_t>(first), static_cast<int64_t>(end - first)), stream);
    }
    return;
  }
  for (size_t k = 0; k < tensors.size(); ++k) {
    const ConstTensorView& x = tensors[k];
    const bool finite = dispatch_float(x.dtype(), op, [&]<class T>() {
      return elementwise<T>().all_finite(x.elements(), x.as<T>());
    });
    if (!finite) flags.as<int32_t>()[k] = 1;
  }
}

void dropout_add_forward(const PackedSequences& packed, DropoutSite site, ConstTensorView x,
                         ConstTensorView residual, TensorView y, Stream stream) {
  dropout_add("dropout_add_forward", packed, site, x, residual, y, stream);
}

void dropout_backward(const PackedSequences& packed, DropoutSite site, ConstTensorView dy,
                      TensorView dx, const ColumnSink& sums, Stream stream) {
  const char* op = "dropout_backward";
  if (!sums.sink.defined()) return dropout_add(op, packed, site, dy, {}, dx, stream);
  if (on_gpu(dy) && site.probability > 0 && dy.elements() > 0) {
    require_dropout_add(op, packed, site, dy, {}, dx);
    require_device(op, {dy, sums.sink});
    require_matrix(op, "sink", sums.sink, dx.columns(), 1, parameter_dtype(dx.dtype()));
    return device_kernels().dropout_backward_sums(packed, site, dy, dx, sums, stream);
  }
  dropout_add(op, packed, site, dy, {}, dx, stream);
  accumulate_column_sums(sums.scale, dx.reshape({dx.rows(), dx.columns()}), sums.sink, stream);
}

}  // namespace amur
