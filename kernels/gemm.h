// Matrix products, by the BLAS and oneDNN libraries.
#pragma once

#include "src/core/tensor.h"

namespace amur {

enum class Transpose : bool { no, yes };

// c = alpha * op(a) op(b) + beta * c, with c [m, n], op(a) [m, k], op(b) [k, n]. Tensors of more
// than two dimensions are seen as [rows(), columns()]. With beta == 0 the old c is not read (it may
// hold NaN). m, n or k may be 0.
//   a, b   both f32, both f64 or both bf16
//   c      f32 for f32, f64 for f64, f32 or bf16 for bf16 (accumulation always in f32 or f64)
// The result is bitwise reproducible for equal shapes, threads and instruction set.
void gemm(Transpose transpose_a, Transpose transpose_b, double alpha, ConstTensorView a,
          ConstTensorView b, double beta, TensorView c, Stream stream = {});

// Threads of the GEMM libraries and of our own kernels in this process. At least 1.
void set_compute_threads(int threads);
int compute_threads();

// "OpenBLAS 0.3.21 (Cooperlake), oneDNN 2.6.3 (avx512_core_bf16)" for reports.
std::string gemm_library_text();

}  // namespace amur
