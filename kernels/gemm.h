// Matrix products, by the BLAS and oneDNN libraries.
#pragma once

#include <map>
#include <span>
#include <string>

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

// c = op(a) op(b) + bias, with bias [n] added to every row. On the GPU in one pass, where c is not
// f64; there, under a c of bf16, the bias is rounded to bf16 and the sum once, behind it. Elsewhere
// a product and `add_bias` (kernels/elementwise.h).
//   bias   f64 for a c of f64, otherwise f32, or bf16 for a c of bf16
void gemm_bias(Transpose transpose_a, Transpose transpose_b, ConstTensorView a, ConstTensorView b,
               ConstTensorView bias, TensorView c, Stream stream = {});

// Choices of algorithms for products on a GPU, by name (kernels/product.h).
//
// Measures, on the GPU and with nothing else on it, what computes each of `products` fastest, and
// takes it for the whole bucket of its rows, the largest one of several in a bucket; those of
// `known` are left out, and so are those for which the library has nothing. Takes up to 288 MiB of
// the GPU, or 32 MiB and the operands of the largest product, while it runs; MemoryError.
struct Product;
std::map<std::string, std::string> measure_products(std::span<const Product> products,
                                                    const std::map<std::string, std::string>& known,
                                                    Device device);
// From now on products on GPUs of that name and with that version of the library are computed so,
// where the algorithm can take the actual shape and the operands are aligned to 64 bytes; all
// others by what the library proposes first. Not while products are queued by another thread.
void use_product_choices(const std::map<std::string, std::string>& choices);

// Threads of the GEMM libraries and of our own kernels in this process. At least 1.
void set_compute_threads(int threads);
int compute_threads();

// OpenBLAS takes a processor that is newer than itself for one of 2004, whose kernels are several
// times slower. It reads what it has to be told instead, OPENBLAS_CORETYPE, while it is loaded:
// where that is missing, the program begins anew with it. To be called first in `main`; returns
// where all is well, or where that cannot be.
void start_again_for_blas(char** argv);

// "OpenBLAS 0.3.21 (Cooperlake), oneDNN 2.6.3 (avx512_core_bf16)" for reports.
std::string gemm_library_text();

}  // namespace amur
