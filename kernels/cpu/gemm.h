#pragma once

#include <string>
#include <string_view>

#include "kernels/cpu/isa.h"
#include "kernels/gemm.h"

namespace amur::cpu {

// m, n, k >= 1.
struct Gemm {
  Transpose transpose_a, transpose_b;
  int64_t m, n, k;
  double alpha;
  ConstTensorView a, b;
  double beta;
  TensorView c;
};

void blas_gemm(const Gemm& g);  // f32, f64
void dnnl_gemm(const Gemm& g);  // f32, bf16
// Whether oneDNN is the faster one for this product in f32: a fixed rule, so that equal shapes on
// equally many threads always give equal bits.
bool prefers_dnnl(const Gemm& g);

void set_blas_threads(int threads);
int blas_threads();
std::string blas_text();
std::string blas_core();  // "SkylakeX": whose kernels OpenBLAS computes with
// Another one for a processor with these instructions, where `core` has none of them; "": none.
std::string better_core(std::string_view core, Isa isa);
std::string dnnl_text();

}  // namespace amur::cpu
