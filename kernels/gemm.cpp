#include "kernels/gemm.h"

#include <unistd.h>

#include <cstdlib>

#if defined(_OPENMP)
#include <omp.h>
#endif

#include "kernels/check.h"
#include "kernels/cpu/gemm.h"
#include "kernels/device_kernels.h"
#include "kernels/elementwise.h"

namespace amur {

namespace {

struct Sizes {
  int64_t m, n, k;
};

Sizes require_product(const char* op, Transpose transpose_a, Transpose transpose_b,
                      ConstTensorView a, ConstTensorView b, TensorView c) {
  const bool ta = transpose_a == Transpose::yes, tb = transpose_b == Transpose::yes;
  const int64_t m = c.rows(), n = c.columns(), k = ta ? a.rows() : a.columns();
  require_matrix(op, "a", a, ta ? k : m, ta ? m : k, a.dtype());
  require_matrix(op, "b", b, tb ? n : k, tb ? k : n, a.dtype());
  AMUR_CHECK(c.defined() &&
                 (c.dtype() == a.dtype() || (a.dtype() == DType::bf16 && c.dtype() == DType::f32)),
             "{} of {} into {}", op, name_of(a.dtype()), name_of(c.dtype()));
  return {m, n, k};
}

}  // namespace

void gemm(Transpose transpose_a, Transpose transpose_b, double alpha, ConstTensorView a,
          ConstTensorView b, double beta, TensorView c, Stream stream) {
  const char* op = "gemm";
  require_device(op, {a, b, c});
  const auto [m, n, k] = require_product(op, transpose_a, transpose_b, a, b, c);
  if (m == 0 || n == 0) return;
  if (k == 0 || alpha == 0) return scale(beta, c, stream);
  if (on_gpu(c))
    return device_kernels().gemm(transpose_a, transpose_b, alpha, a, b, {}, beta, c, stream);
  const cpu::Gemm g{transpose_a, transpose_b, m, n, k, alpha, a, b, beta, c};
  if (a.dtype() == DType::bf16 || (a.dtype() == DType::f32 && cpu::prefers_dnnl(g)))
    cpu::dnnl_gemm(g);
  else
    cpu::blas_gemm(g);
}

void gemm_bias(Transpose transpose_a, Transpose transpose_b, ConstTensorView a, ConstTensorView b,
               ConstTensorView bias, TensorView c, Stream stream) {
  const char* op = "gemm_bias";
  require_device(op, {a, b, bias, c});
  const auto [m, n, k] = require_product(op, transpose_a, transpose_b, a, b, c);
  const DType wide = parameter_dtype(c.dtype());
  require_matrix(op, "bias", bias, n, 1, bias.dtype() == c.dtype() ? c.dtype() : wide);
  if (m == 0 || n == 0) return;
  if (on_gpu(c) && k > 0)
    return device_kernels().gemm(transpose_a, transpose_b, 1, a, b, bias, 0, c, stream);
  gemm(transpose_a, transpose_b, 1, a, b, 0, c, stream);
  Tensor widened;
  if (bias.dtype() != wide) {
    widened = Tensor({n}, wide, bias.device());
    cast(bias, widened, stream);
    bias = widened;
  }
  add_bias(bias, c.reshape({m, n}), stream);
}

std::map<std::string, std::string> measure_products(std::span<const Product> products,
                                                    const std::map<std::string, std::string>& known,
                                                    Device device) {
  AMUR_CHECK(device.kind == Device::Kind::cuda, "algorithms of products on {}", device.text());
  return device_kernels().measure_products(products, known, device);
}

void use_product_choices(const std::map<std::string, std::string>& choices) {
  device_kernels().use_product_choices(choices);
}

void set_compute_threads(int threads) {
  AMUR_CHECK(threads >= 1, "{} threads", threads);
  cpu::set_blas_threads(threads);
#if defined(_OPENMP)
  omp_set_num_threads(threads);
#endif
}

int compute_threads() {
  return cpu::blas_threads();
}

void start_again_for_blas(char** argv) {
  constexpr const char* kName = "OPENBLAS_CORETYPE";
  if (std::getenv(kName)) return;
  const std::string core = cpu::better_core(cpu::blas_core(), cpu::instruction_set());
  if (core.empty() || ::setenv(kName, core.c_str(), 1) != 0) return;
  ::execv("/proc/self/exe", argv);
}

std::string gemm_library_text() {
  return cpu::blas_text() + ", " + cpu::dnnl_text();
}

}  // namespace amur
