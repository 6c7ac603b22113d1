// Instructions that work by warps, of compute capability 8.0 and newer: products of bf16 matrices
// by tensor cores, their loads from shared memory, and copies into it that nobody waits for yet.
//
// All 32 lanes of a warp call a function together where its comment says "warp". Sections are those
// of NVIDIA's PTX ISA, version 9.
//
// Who holds what of a matrix, with group = lane / 4 and pair = lane % 4 ("Matrix Fragments for
// mma.m16n8k16 with floating point type"); the lower half of a register is the lower index:
//   A [16, 16]  a[0]: row group, columns 2 pair and 2 pair + 1; a[1]: row group + 8, the same
//   columns;
//               a[2], a[3]: as a[0], a[1] with columns + 8
//   B [16, 8]   b0: rows 2 pair and 2 pair + 1, column group; b1: rows + 8
//   C [16, 8]   c[0], c[1]: row group, columns 2 pair and 2 pair + 1; c[2], c[3]: row group + 8
// So two neighbouring blocks of C, rounded and packed, are an A.
#pragma once

#include "src/core/dtype.h"
#include "src/core/host_device.h"

namespace amur::cuda {

// Lane of a thread of a block [x]. To the compiler each call is another value, so that what follows
// from one within a loop is not kept in registers across it.
__device__ inline int lane_index() {
  int index = static_cast<int>(threadIdx.x) % 32;
  asm volatile("" : "+r"(index));
  return index;
}

// The address that instructions take of shared memory (Generic Addressing).
__device__ inline uint32_t shared_address(const void* at) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(at));
}

// Warp: c += A B ("Multiply-and-Accumulate Instruction: mma").
__device__ inline void mma_bf16(const uint32_t (&a)[4], uint32_t b0, uint32_t b1, float (&c)[4]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Warp: four 8 x 8 matrices of 16-bit elements in shared memory; lane l gives the address of row
// l % 8 of matrix l / 8, 16 bytes of them. Afterwards r[m] is elements 2 pair and 2 pair + 1 of row
// `group` of matrix m ("Warp-level matrix load instruction: ldmatrix").
__device__ inline void load_matrices(const bf16* row, uint32_t (&r)[4]) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}
// Warp: the same of the transposed matrices: r[m] is column `group`, rows 2 pair and 2 pair + 1.
__device__ inline void load_matrices_transposed(const bf16* row, uint32_t (&r)[4]) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}

// 16 bytes from global to shared memory, or 16 zeros; both addresses are multiples of 16. Seen by
// this thread after wait_for_copies, by others after a barrier behind that ("cp.async").
__device__ inline void copy_16_async(void* to, const void* from, bool exists) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)),
               "l"(__cvta_generic_to_global(from)), "r"(exists ? 16 : 0)
               : "memory");
}
// The same for 4 bytes.
__device__ inline void copy_4_async(void* to, const void* from, bool exists) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(shared_address(to)),
               "l"(__cvta_generic_to_global(from)), "r"(exists ? 4 : 0)
               : "memory");
}
// Of all copies that this thread began ("cp.async.wait_all").
__device__ inline void wait_for_copies() {
  asm volatile("cp.async.wait_all;" ::: "memory");
}

// Both rounded to nearest even, `low` in the lower half ("cvt").
__device__ inline uint32_t pack_bf16(float low, float high) {
  uint32_t packed;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}

// 2^x to 2^-22, exactly 1 for 0 and 0 for -infinity; no subnormal results ("ex2").
__device__ inline float exp2_approximate(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// 1 / x to 2^-23, 0 for infinity ("rcp").
__device__ inline float reciprocal_approximate(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

}  // namespace amur::cuda
