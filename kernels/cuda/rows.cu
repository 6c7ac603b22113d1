#include "kernels/rows.h"

#include "kernels/cuda/staging.cuh"

namespace amur::cuda {
namespace {

// A block takes row after row. Unit: what a row is a whole number of.
template <class Unit>
__global__ void __launch_bounds__(kThreads)
    move_rows_kernel(int64_t rows, int64_t units, const int32_t* from_index,
                     const int32_t* to_index, const Unit* from, Unit* to) {
  for (int64_t i = blockIdx.x; i < rows; i += gridDim.x) {
    const Unit* source = from + (from_index ? from_index[i] : i) * units;
    Unit* target = to + (to_index ? to_index[i] : i) * units;
    for (int64_t j = threadIdx.x; j < units; j += kThreads) target[j] = source[j];
  }
}

template <class T, class A = AccumulateType<T>>
__global__ void __launch_bounds__(kThreads)
    scale_rows_kernel(int64_t count, int64_t width, const int64_t* rows, const double* factors,
                      T* x) {
  for (int64_t k = blockIdx.x; k < count; k += gridDim.x) {
    T* row = x + rows[k] * width;
    const A factor = static_cast<A>(factors[k]);
    for (int64_t j = threadIdx.x; j < width; j += kThreads)
      row[j] = factors[k] == 0 ? T(A(0)) : T(factor * static_cast<A>(row[j]));
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    squares_of_rows_kernel(int64_t count, int64_t width, const int64_t* rows, const T* x,
                           double* of_row) {
  for (int64_t k = blockIdx.x; k < count; k += gridDim.x) {
    const T* row = x + rows[k] * width;
    double sum = 0;
    for (int64_t j = threadIdx.x; j < width; j += kThreads) {
      const double v = static_cast<double>(row[j]);
      sum += v * v;
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) of_row[k] = sum;
  }
}

// All who find something write the same.
template <class T, class A = AccumulateType<T>>
__global__ void __launch_bounds__(kThreads)
    finite_rows_kernel(int64_t count, int64_t width, const int64_t* rows, const T* x, int* bad) {
  bool finite = true;
  for (int64_t k = blockIdx.x; k < count; k += gridDim.x) {
    const T* row = x + rows[k] * width;
    for (int64_t j = threadIdx.x; j < width; j += kThreads) {
      const A v = static_cast<A>(row[j]);
      finite = finite && v - v == A(0);  // infinite minus infinite is NaN
    }
  }
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
  const unsigned blocks = blocks_for_each(rows);
  const size_t bytes = static_cast<size_t>(to.columns()) * size_of(to.dtype());
  const auto move = [&]<class Unit>(Unit) {
    move_rows_kernel<Unit><<<blocks, kThreads, 0, s>>>(
        rows, static_cast<int64_t>(bytes / sizeof(Unit)), from_there, to_there,
        static_cast<const Unit*>(from.raw()), static_cast<Unit*>(to.raw()));
  };
  // Tensors and rows of them are aligned to their elements, so rows of whole words may still begin
  // between two words.
  const auto misaligned = [](const void* p) { return reinterpret_cast<uintptr_t>(p) % 4 != 0; };
  if (bytes % 4 != 0 || misaligned(from.raw()) || misaligned(to.raw()))
    move(uint8_t{});
  else
    move(uint32_t{});
  check_launch();
}

void CudaBackend::scale_rows(TensorView x, std::span<const int64_t> rows,
                             std::span<const double> factors, Stream stream) {
  const cudaStream_t s = enter(x.device(), stream);
  const Uploaded<int64_t> rows_there(rows, x.device(), stream);
  const Uploaded<double> factors_there(factors, x.device(), stream);
  const int64_t count = std::ssize(rows);
  dispatch_float(x.dtype(), "scale_rows", [&]<class T>() {
    scale_rows_kernel<T><<<blocks_for_each(count), kThreads, 0, s>>>(
        count, x.columns(), rows_there.data(), factors_there.data(), x.as<T>());
  });
  check_launch();
}

double CudaBackend::sum_of_squares_of_rows(ConstTensorView x, std::span<const int64_t> rows) {
  const Stream stream(x.device());
  const cudaStream_t s = enter(x.device(), stream);
  const Uploaded<int64_t> there(rows, x.device(), stream);
  const int64_t count = std::ssize(rows);
  const Scratch of_row(rows.size() * sizeof(double), x.device(), stream);
  dispatch_float(x.dtype(), "sum_of_squares_of_rows", [&]<class T>() {
    squares_of_rows_kernel<T><<<blocks_for_each(count), kThreads, 0, s>>>(
        count, x.columns(), there.data(), x.as<T>(), of_row.as<double>());
  });
  check_launch();
  double sum = 0;
  sums_to_host(of_row.as<double>(), 1, count, &sum, x.device(), stream);
  return sum;
}

bool CudaBackend::all_finite_in_rows(ConstTensorView x, std::span<const int64_t> rows) {
  const Stream stream(x.device());
  const cudaStream_t s = enter(x.device(), stream);
  const Uploaded<int64_t> there(rows, x.device(), stream);
  const int64_t count = std::ssize(rows);
  const Scratch scratch(sizeof(int), x.device(), stream);
  fill_zero(scratch.as<int>(), x.device(), sizeof(int), stream);
  dispatch_float(x.dtype(), "all_finite_in_rows", [&]<class T>() {
    finite_rows_kernel<T><<<blocks_for_each(count), kThreads, 0, s>>>(
        count, x.columns(), there.data(), x.as<T>(), scratch.as<int>());
  });
  check_launch();
  int bad = 0;
  copy_to_host(&bad, scratch.as<int>(), sizeof(bad), x.device(), s);
  return bad == 0;
}

}  // namespace amur::cuda
