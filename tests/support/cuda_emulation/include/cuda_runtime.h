// Stands where CUDA's header is looked for: as much of CUDA C++ and of its runtime as kernels/cuda
// uses, with NVIDIA's names, over tests/support/cuda_emulation/emulator.h. What a kernel needs and
// does not find is to be added here, in threads.cpp or runtime.cpp.
#pragma once

#include <math.h>
#include <string.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <tuple>
#include <type_traits>

#include "tests/support/cuda_emulation/emulator.h"

// --- CUDA C++; convert.py takes care of launches and of __shared__

#define __global__
#define __device__
#define __host__
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(bytes) alignas(bytes)

struct uint3 {
  unsigned x, y, z;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  dim3(unsigned width = 1, unsigned height = 1, unsigned depth = 1)
      : x(width), y(height), z(depth) {}
};
inline uint3 threadIdx, blockIdx, blockDim, gridDim;  // of the thread that runs

inline void __syncthreads(amur::emulation::Where where = amur::emulation::Where::current()) {
  amur::emulation::barrier(where);
}
inline void __syncwarp(amur::emulation::Where where = amur::emulation::Where::current()) {
  amur::emulation::with_warp(
      {}, [](const amur::emulation::Lane(&)[32]) {}, where);
}

namespace amur::emulation {

inline void all_lanes_only(unsigned mask) {
  if (mask != 0xffffffffu) fail("warp instructions of some lanes are not emulated");
}

template <class T>
struct Shuffled {
  T value;
  unsigned from;  // a lane
};
template <class T>
T shuffle(unsigned mask, T value, unsigned from, Where where) {
  all_lanes_only(mask);
  const Shuffled<T> in{value, from};
  T out;
  const auto exchange = [](const Lane(&lanes)[32]) {
    for (const Lane& lane : lanes) {
      const Lane& source = lanes[static_cast<const Shuffled<T>*>(lane.in)->from % 32];
      *static_cast<T*>(lane.out) = static_cast<const Shuffled<T>*>(source.in)->value;
    }
  };
  with_warp({&in, &out}, exchange, where);
  return out;
}

}  // namespace amur::emulation

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int offset,
                  amur::emulation::Where where = amur::emulation::Where::current()) {
  return amur::emulation::shuffle(mask, value, threadIdx.x % 32 ^ static_cast<unsigned>(offset),
                                  where);
}
template <class T>
T __shfl_sync(unsigned mask, T value, int from,
              amur::emulation::Where where = amur::emulation::Where::current()) {
  return amur::emulation::shuffle(mask, value, static_cast<unsigned>(from), where);
}
inline unsigned __ballot_sync(unsigned mask, bool mine,
                              amur::emulation::Where where = amur::emulation::Where::current()) {
  using amur::emulation::Lane;
  amur::emulation::all_lanes_only(mask);
  unsigned all = 0;
  const auto collect = [](const Lane(&lanes)[32]) {
    unsigned bits = 0;
    for (unsigned l = 0; l < 32; ++l)
      bits |= static_cast<unsigned>(*static_cast<const bool*>(lanes[l].in)) << l;
    for (const Lane& lane : lanes) *static_cast<unsigned*>(lane.out) = bits;
  };
  amur::emulation::with_warp({&mine, &all}, collect, where);
  return all;
}
inline int __popc(unsigned value) {
  return std::popcount(value);
}

template <class T>
T min(T a, T b) {
  return b < a ? b : a;
}
template <class T>
T max(T a, T b) {
  return a < b ? b : a;
}

namespace amur::emulation {

// kernel<<<grid, block, shared, stream>>>(arguments...), where `call` calls the kernel.
template <class Call, class... Arguments>
void launch(const char* kernel, dim3 grid, dim3 block, size_t shared, const void* function,
            const Call& call, const Arguments&... arguments) {
  static_assert((std::is_trivially_copyable_v<Arguments> && ...), "copied to the GPU byte by byte");
  enqueue({kernel, {grid.x, grid.y, grid.z}, {block.x, block.y, block.z}, shared}, function,
          [call, all = std::tuple(arguments...)] { std::apply(call, all); });
}

}  // namespace amur::emulation

// --- the runtime: runtime.cpp

using cudaStream_t = struct EmulatedStream*;
using cudaEvent_t = struct EmulatedEvent*;
using cudaMemPool_t = struct EmulatedPool*;
enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorMemoryAllocation = 2,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorInsufficientDriver = 35,
  cudaErrorNoDevice = 100,
  cudaErrorInvalidDevice = 101,
  cudaErrorLaunchFailure = 719
};
enum cudaMemcpyKind {
  cudaMemcpyHostToDevice = 1,
  cudaMemcpyDeviceToHost = 2,
  cudaMemcpyDefault = 4
};
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };
enum cudaMemPoolAttr {
  cudaMemPoolAttrReleaseThreshold = 4,
  cudaMemPoolAttrReservedMemCurrent = 5,
  cudaMemPoolAttrUsedMemCurrent = 7,
  cudaMemPoolAttrUsedMemHigh = 8
};
inline constexpr unsigned cudaEventDisableTiming = 2, cudaHostAllocDefault = 0;
struct cudaDeviceProp {
  char name[256];
  int major, minor;
  size_t totalGlobalMem;
};

cudaError_t cudaGetLastError();
const char* cudaGetErrorString(cudaError_t status);
const char* cudaGetErrorName(cudaError_t status);
cudaError_t cudaRuntimeGetVersion(int* version);
cudaError_t cudaDriverGetVersion(int* version);
cudaError_t cudaGetDeviceCount(int* count);
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device);
cudaError_t cudaSetDevice(int device);
cudaError_t cudaDeviceGetDefaultMemPool(cudaMemPool_t* pool, int device);
cudaError_t cudaMemPoolTrimTo(cudaMemPool_t pool, size_t least);
cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t pool, cudaMemPoolAttr attribute, void* value);
cudaError_t cudaMemPoolGetAttribute(cudaMemPool_t pool, cudaMemPoolAttr attribute, void* value);
cudaError_t cudaMemGetInfo(size_t* free, size_t* total);
cudaError_t cudaMallocAsync(void** memory, size_t bytes, cudaStream_t stream);
cudaError_t cudaFreeAsync(void* memory, cudaStream_t stream);
cudaError_t cudaHostAlloc(void** memory, size_t bytes, unsigned flags);
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream);
cudaError_t cudaMemsetAsync(void* memory, int value, size_t bytes, cudaStream_t stream);
cudaError_t cudaStreamSynchronize(cudaStream_t stream);
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags);
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags);
cudaError_t cudaEventCreate(cudaEvent_t* event);
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t begin, cudaEvent_t end);
cudaError_t cudaEventDestroy(cudaEvent_t event);
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream);
cudaError_t cudaEventSynchronize(cudaEvent_t event);
cudaError_t cudaFuncSetAttribute(const void* function, cudaFuncAttribute attribute, int value);
