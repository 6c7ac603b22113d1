#include "kernels/rows.h"

#include <cstring>

#include "kernels/check.h"
#include "kernels/device_kernels.h"

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

}  // namespace amur
