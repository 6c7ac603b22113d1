#include <cblas.h>

#include <algorithm>
#include <iterator>
#include <limits>

#include "kernels/cpu/gemm.h"

namespace amur::cpu {
namespace {

CBLAS_TRANSPOSE flag(Transpose t) {
  return t == Transpose::yes ? CblasTrans : CblasNoTrans;
}

blasint size(int64_t n) {
  AMUR_CHECK(n <= std::numeric_limits<blasint>::max(), "a matrix of {} rows or columns", n);
  return static_cast<blasint>(n);
}

}  // namespace

void blas_gemm(const Gemm& g) {
  const blasint m = size(g.m), n = size(g.n), k = size(g.k);
  const blasint lda = g.transpose_a == Transpose::yes ? m : k;
  const blasint ldb = g.transpose_b == Transpose::yes ? k : n;
  if (g.c.dtype() == DType::f64) {
    cblas_dgemm(CblasRowMajor, flag(g.transpose_a), flag(g.transpose_b), m, n, k, g.alpha,
                g.a.as<double>(), lda, g.b.as<double>(), ldb, g.beta, g.c.as<double>(), n);
  } else {
    cblas_sgemm(CblasRowMajor, flag(g.transpose_a), flag(g.transpose_b), m, n, k,
                static_cast<float>(g.alpha), g.a.as<float>(), lda, g.b.as<float>(), ldb,
                static_cast<float>(g.beta), g.c.as<float>(), n);
  }
}

void set_blas_threads(int threads) {
  openblas_set_num_threads(threads);
}
int blas_threads() {
  return openblas_get_num_threads();
}

std::string blas_text() {
  std::string version = openblas_get_config();  // "OpenBLAS 0.3.21 DYNAMIC_ARCH ..."
  version = version.substr(0, version.find(' ', version.find(' ') + 1));
  return fmt::format("{} ({})", version, blas_core());
}
std::string blas_core() {
  return openblas_get_corename();
}

std::string better_core(std::string_view core, Isa isa) {
  // Those with vectors of 16 bytes, the last of which OpenBLAS falls back to.
  constexpr std::string_view kOld[] = {"Katmai", "Coppermine", "Northwood",  "Prescott",
                                       "Core2",  "Penryn",     "Dunnington", "Nehalem"};
  if (std::find(std::begin(kOld), std::end(kOld), core) == std::end(kOld)) return "";
  return isa == Isa::avx512 ? "SkylakeX" : isa == Isa::avx2 ? "Haswell" : "";
}

}  // namespace amur::cpu
