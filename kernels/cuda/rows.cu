#include "kernels/rows.h"

#include <vector>

#include "kernels/cuda/packs.cuh"
#include "kernels/cuda/staging.cuh"

namespace amur::cuda {
namespace {

// A warp takes row after row.

// Unit: what a row is a whole number of.
template <class Unit>
__global__ void __launch_bounds__(kThreads)
    move_rows_kernel(int64_t rows, int64_t units, const int32_t* from_index,
                     const int32_t* to_index, const Unit* from, Unit* to) {
  for (int64_t i = first_row(); i < rows; i += row_stride()) {
    const Unit* source = from + (from_index ? from_index[i] : i) * units;
    Unit* target = to + (to_index ? to_index[i] : i) * units;
#pragma unroll 1
    for (int64_t j = lane_of_warp(); j < units; j += kLanes) target[j] = source[j];
  }
}

struct ScaledRow {
  int64_t row;
  double factor;
};

template <class T, int count, class A = AccumulateType<T>>
__global__ void __launch_bounds__(kThreads)
    scale_rows_kernel(int64_t rows, int64_t width, const ScaledRow* list, T* x) {
  for (int64_t k = first_row(); k < rows; k += row_stride()) {
    const A factor = static_cast<A>(list[k].factor);
    const bool zero = list[k].factor == 0;
    T* row = x + list[k].row * width;
    for (int64_t j = lane_of_warp() * count; j < width; j += kLanes * count) {
      Pack<T, count> v{};
      if (!zero) {
        v = load_pack<count>(row + j);
        for (int i = 0; i < count; ++i) v.v[i] = T(factor * static_cast<A>(v.v[i]));
      }
      store_pack(row + j, v);
    }
  }
}

// f(element) for all elements of row rows[k] that this lane has.
template <int count, class T, class F>
__device__ void over_row(int64_t k, int64_t width, const int64_t* rows, const T* x, const F& f) {
  const T* row = x + rows[k] * width;
#pragma unroll 4
  for (int64_t j = lane_of_warp() * count; j < width; j += kLanes * count) {
    const Pack<T, count> v = load_pack<count>(row + j);
    for (int i = 0; i < count; ++i) f(v.v[i]);
  }
}

template <class T, int count>
__global__ void __launch_bounds__(kThreads)
    squares_of_rows_kernel(int64_t n, int64_t width, const int64_t* rows, const T* x,
                           double* of_row) {
  for (int64_t k = first_row(); k < n; k += row_stride()) {
    double sum = 0;
    over_row<count>(k, width, rows, x, [&](T element) {
      const double v = static_cast<double>(element);
      sum += v * v;
    });
    sum = warp_sum(sum);
    if (lane_of_warp() == 0) of_row[k] = sum;
  }
}

// All who find something write the same.
template <class T, int count, class A = AccumulateType<T>>
__global__ void __launch_bounds__(kThreads)
    finite_rows_kernel(int64_t n, int64_t width, const int64_t* rows, const T* x, int* bad) {
  bool finite = true;
  for (int64_t k = first_row(); k < n; k += row_stride())
    over_row<count>(k, width, rows, x, [&](T element) {
      const A v = static_cast<A>(element);
      finite = finite && v - v == A(0);  // infinite minus infinite is NaN
    });
  if (!finite) *bad = 1;
}

}  // namespace

void CudaBackend::move_rows(ConstTensorView from, std::span<const int32_t> from_index,
                            std::span<const int32_t> to_index, TensorView to, Stream stream) {
  const cudaStream_t s = enter(to.device(), stream);
  const Uploaded<int32_t> index(from_index.empty() ? to_index : from_index, to.device(), stream);
  const int32_t* from_there = from_index.empty() ? nullptr : index.data();
  const int32_t* to_there = from_index.empty() ? index.data() : nullptr;
  const auto rows = static_cast<int64_t>(std::max(from_index.size(), to_index.size()));
  const unsigned blocks = blocks_for_rows(rows);
  const size_t bytes = static_cast<size_t>(to.columns()) * size_of(to.dtype());
  const auto move = [&]<class Unit>(Unit) {
    move_rows_kernel<Unit><<<blocks, kThreads, 0, s>>>(
        rows, static_cast<int64_t>(bytes / sizeof(Unit)), from_there, to_there,
        static_cast<const Unit*>(from.raw()), static_cast<Unit*>(to.raw()));
  };
  // Tensors and rows of them are aligned to their elements, so rows of whole words may still begin
  // between two words.
  const auto whole = [&](size_t unit) {
    const auto at = [=](const void* p) { return reinterpret_cast<uintptr_t>(p) % unit == 0; };
    return bytes % unit == 0 && at(from.raw()) && at(to.raw());
  };
  if (whole(sizeof(uint4)))
    move(uint4{});
  else if (whole(sizeof(uint32_t)))
    move(uint32_t{});
  else
    move(uint8_t{});
  check_launch();
}

void CudaBackend::scale_rows(TensorView x, std::span<const int64_t> rows,
                             std::span<const double> factors, Stream stream) {
  const cudaStream_t s = enter(x.device(), stream);
  std::vector<ScaledRow> list(rows.size());
  for (size_t k = 0; k < rows.size(); ++k) list[k] = {rows[k], factors[k]};
  const Uploaded<ScaledRow> there(list, x.device(), stream);
  dispatch_float(x.dtype(), "scale_rows", [&]<class T>() {
    const auto launch = [&]<int count>() {
      scale_rows_kernel<T, count><<<blocks_for_rows(std::ssize(rows)), kThreads, 0, s>>>(
          std::ssize(rows), x.columns(), there.data(), x.as<T>());
    };
    with_packs<T>(x.columns(), launch, x.as<T>());
  });
  check_launch();
}

double CudaBackend::sum_of_squares_of_rows(ConstTensorView x, std::span<const int64_t> rows) {
  const Stream stream(x.device());
  const cudaStream_t s = enter(x.device(), stream);
  const Uploaded<int64_t> there(rows, x.device(), stream);
  const int64_t n = std::ssize(rows);
  const Scratch of_row(rows.size() * sizeof(double), x.device(), stream);
  dispatch_float(x.dtype(), "sum_of_squares_of_rows", [&]<class T>() {
    const auto launch = [&]<int count>() {
      squares_of_rows_kernel<T, count><<<blocks_for_rows(n), kThreads, 0, s>>>(
          n, x.columns(), there.data(), x.as<T>(), of_row.as<double>());
    };
    with_packs<T>(x.columns(), launch, x.as<T>());
  });
  check_launch();
  double sum = 0;
  sums_to_host(of_row.as<double>(), 1, n, &sum, x.device(), stream);
  return sum;
}

bool CudaBackend::all_finite_in_rows(ConstTensorView x, std::span<const int64_t> rows) {
  const Stream stream(x.device());
  const cudaStream_t s = enter(x.device(), stream);
  const Uploaded<int64_t> there(rows, x.device(), stream);
  const int64_t n = std::ssize(rows);
  const Scratch scratch(sizeof(int), x.device(), stream);
  fill_zero(scratch.as<int>(), x.device(), sizeof(int), stream);
  dispatch_float(x.dtype(), "all_finite_in_rows", [&]<class T>() {
    const auto launch = [&]<int count>() {
      finite_rows_kernel<T, count><<<blocks_for_rows(n), kThreads, 0, s>>>(
          n, x.columns(), there.data(), x.as<T>(), scratch.as<int>());
    };
    with_packs<T>(x.columns(), launch, x.as<T>());
  });
  check_launch();
  int bad = 0;
  copy_to_host(&bad, scratch.as<int>(), sizeof(bad), x.device(), s);
  return bad == 0;
}

}  // namespace amur::cuda
