#include "kernels/rows.h"

#include "kernels/cuda/backend.cuh"

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

}  // namespace

void CudaBackend::move_rows(ConstTensorView from, std::span<const int32_t> from_index,
                            std::span<const int32_t> to_index, TensorView to, Stream stream) {
  const cudaStream_t s = enter(to.device(), stream);
  const size_t given = from_index.size() + to_index.size();
  const Scratch scratch(given * sizeof(int32_t), to.device(), stream);
  auto* indices = scratch.as<int32_t>();
  const auto upload = [&](std::span<const int32_t> index, int32_t* there) -> const int32_t* {
    if (index.empty()) return nullptr;
    AMUR_CUDA_CHECK(
        cudaMemcpyAsync(there, index.data(), index.size_bytes(), cudaMemcpyHostToDevice, s));
    return there;
  };
  const int32_t* from_there = upload(from_index, indices);
  const int32_t* to_there = upload(to_index, indices + from_index.size());
  const auto rows = static_cast<int64_t>(std::max(from_index.size(), to_index.size()));
  const auto blocks = static_cast<unsigned>(std::min(rows, kMostBlocks));
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
  AMUR_CUDA_CHECK(cudaStreamSynchronize(s));  // the caller's indices may go now
}

}  // namespace amur::cuda
