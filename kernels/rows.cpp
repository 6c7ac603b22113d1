#include "kernels/rows.h"

#include <algorithm>
#include <cstring>

#include "kernels/check.h"
#include "kernels/cpu/elementwise.h"
#include "kernels/cpu/isa.h"
#include "kernels/device_kernels.h"
#include "kernels/elementwise.h"

namespace amur {
namespace {

void check_rows(const char* op, ConstTensorView many, std::span<const int32_t> index,
                ConstTensorView few) {
  AMUR_CHECK(many.dtype() == few.dtype() && many.columns() == few.columns() &&
                 few.rows() == static_cast<int64_t>(index.size()),
             "rows {} {} and {} {} with {} indices", name_of(many.dtype()), many.shape().text(),
             name_of(few.dtype()), few.shape().text(), index.size());
  require_device(op, {many, few});
  for (int32_t i : index) AMUR_CHECK(i >= 0 && i < many.rows(), "row {} of {}", i, many.rows());
}

void check_rows(ConstTensorView x, std::span<const int64_t> rows) {
  for (int64_t r : rows) AMUR_CHECK(r >= 0 && r < x.rows(), "row {} of {}", r, x.rows());
}

size_t row_bytes(ConstTensorView v) {
  return static_cast<size_t>(v.columns()) * size_of(v.dtype());
}

}  // namespace

void gather_rows(ConstTensorView from, std::span<const int32_t> index, TensorView to,
                 Stream stream) {
  check_rows("gather_rows", from, index, to);
  if (to.elements() == 0) return;
  if (on_gpu(to)) return device_kernels().move_rows(from, index, {}, to, stream);
  const size_t bytes = row_bytes(from);
  const auto* source = static_cast<const std::byte*>(from.raw());
  auto* target = static_cast<std::byte*>(to.raw());
  for (size_t i = 0; i < index.size(); ++i)
    std::memcpy(target + i * bytes, source + static_cast<size_t>(index[i]) * bytes, bytes);
}

void scatter_rows(ConstTensorView from, std::span<const int32_t> index, TensorView to,
                  Stream stream) {
  check_rows("scatter_rows", to, index, from);
  if (from.elements() == 0) return;
  if (on_gpu(to)) return device_kernels().move_rows(from, {}, index, to, stream);
  const size_t bytes = row_bytes(from);
  const auto* source = static_cast<const std::byte*>(from.raw());
  auto* target = static_cast<std::byte*>(to.raw());
  for (size_t i = 0; i < index.size(); ++i)
    std::memcpy(target + static_cast<size_t>(index[i]) * bytes, source + i * bytes, bytes);
}

void scale_rows(TensorView x, std::span<const int64_t> rows, std::span<const double> factors,
                Stream stream) {
  AMUR_CHECK(rows.size() == factors.size(), "{} rows, {} factors", rows.size(), factors.size());
  check_rows(x, rows);
  if (rows.empty() || x.elements() == 0) return;
  if (on_gpu(x)) return device_kernels().scale_rows(x, rows, factors, stream);
  for (size_t k = 0; k < rows.size(); ++k) scale(factors[k], x.slice(rows[k], 1));
}

double sum_of_squares_of_rows(ConstTensorView x, std::span<const int64_t> rows) {
  check_rows(x, rows);
  if (rows.empty() || x.elements() == 0) return 0;
  if (on_gpu(x)) return device_kernels().sum_of_squares_of_rows(x, rows);
  return dispatch_float(x.dtype(), "sum_of_squares_of_rows", [&]<class T>() {
    const auto& kernels = cpu::kernels<cpu::ElementwiseKernels<T>>();
    double sum = 0;
    for (const int64_t r : rows)
      sum += kernels.sum_of_squares(x.columns(), x.as<T>() + r * x.columns());
    return sum;
  });
}

bool all_finite_in_rows(ConstTensorView x, std::span<const int64_t> rows) {
  check_rows(x, rows);
  if (rows.empty() || x.elements() == 0) return true;
  if (on_gpu(x)) return device_kernels().all_finite_in_rows(x, rows);
  return dispatch_float(x.dtype(), "all_finite_in_rows", [&]<class T>() {
    const auto& kernels = cpu::kernels<cpu::ElementwiseKernels<T>>();
    return std::all_of(rows.begin(), rows.end(), [&](int64_t r) {
      return kernels.all_finite(x.columns(), x.as<T>() + r * x.columns());
    });
  });
}

}  // namespace amur
