// Products by cuBLASLt, which counts in columns: a row-major c = op(a) op(b) is its transpose
// c^T = op(b)^T op(a)^T, and a row-major matrix read column by column is already transposed.
//
// Each product takes the algorithm that the library's heuristic ranks first among those that add
// partial sums in a fixed order and in the compute type. Nothing is measured, so the bits of a
// result are a function of shapes, alignment, library and device.
#include "kernels/gemm.h"

#include <cublasLt.h>

#include <bit>
#include <cstdint>
#include <map>
#include <mutex>
#include <tuple>

#include "kernels/cuda/backend.cuh"

namespace amur::cuda {
namespace {

constexpr size_t kWorkspace = 32 << 20;  // what the algorithms of Hopper ask for at most
constexpr size_t kMostPlans = 8192;

void check_library(cublasStatus_t status, const char* call, CallSite site) {
  if (status == CUBLAS_STATUS_SUCCESS) [[likely]]
    return;
  throw InternalError(fmt::format("{}: {}", call, cublasLtGetStatusString(status)), site);
}
#define AMUR_CUBLAS_CHECK(call) check_library(call, #call, ::amur::CallSite::here())

cudaDataType_t type_of(DType dtype) {
  switch (dtype) {
    case DType::f64:
      return CUDA_R_64F;
    case DType::bf16:
      return CUDA_R_16BF;
    default:
      return CUDA_R_32F;
  }
}

// Alignment in bytes. What a whole tensor is sure to have is told, and no more, so that the choice
// of an algorithm does not depend on where tensors happen to lie.
uint32_t alignment_of(const void* memory) {
  constexpr int kTensor = 6;  // 64 bytes
  return uint32_t{1} << std::min(kTensor, std::countr_zero(reinterpret_cast<uintptr_t>(memory)));
}

// What the choice of an algorithm depends on.
struct Product {
  int device;
  bool transpose_a, transpose_b;
  int64_t m, n, k;
  DType ab, c;
  uint32_t align_a, align_b, align_c;
  bool reads_c;

  auto operator<=>(const Product&) const = default;
};

// Descriptions and algorithm of a product; plain values.
struct Plan {
  cublasLtMatmulDescOpaque_t product;
  cublasLtMatrixLayoutOpaque_t a, b, c;
  cublasLtMatmulAlgo_t algorithm;
  size_t workspace;
};

template <class Value>
void set(cublasLtMatmulPreferenceOpaque_t& preference, cublasLtMatmulPreferenceAttributes_t name,
         Value value) {
  AMUR_CUBLAS_CHECK(cublasLtMatmulPreferenceSetAttribute(&preference, name, &value, sizeof(value)));
}

// rows x columns in row-major order, which the library sees as columns x rows.
void describe(cublasLtMatrixLayoutOpaque_t& layout, DType dtype, int64_t rows, int64_t columns) {
  AMUR_CUBLAS_CHECK(cublasLtMatrixLayoutInit(&layout, type_of(dtype),
                                             static_cast<uint64_t>(columns),
                                             static_cast<uint64_t>(rows), columns));
}

Plan make_plan(cublasLtHandle_t library, const Product& p) {
  Plan plan{};
  const bool f64 = p.ab == DType::f64;
  AMUR_CUBLAS_CHECK(cublasLtMatmulDescInit(
      &plan.product, f64 ? CUBLAS_COMPUTE_64F : CUBLAS_COMPUTE_32F, f64 ? CUDA_R_64F : CUDA_R_32F));
  // The library's first operand is b, its second a.
  const cublasOperation_t first = p.transpose_b ? CUBLAS_OP_T : CUBLAS_OP_N;
  const cublasOperation_t second = p.transpose_a ? CUBLAS_OP_T : CUBLAS_OP_N;
  AMUR_CUBLAS_CHECK(cublasLtMatmulDescSetAttribute(&plan.product, CUBLASLT_MATMUL_DESC_TRANSA,
                                                   &first, sizeof(first)));
  AMUR_CUBLAS_CHECK(cublasLtMatmulDescSetAttribute(&plan.product, CUBLASLT_MATMUL_DESC_TRANSB,
                                                   &second, sizeof(second)));
  describe(plan.a, p.ab, p.transpose_a ? p.k : p.m, p.transpose_a ? p.m : p.k);
  describe(plan.b, p.ab, p.transpose_b ? p.n : p.k, p.transpose_b ? p.k : p.n);
  describe(plan.c, p.c, p.m, p.n);

  cublasLtMatmulPreferenceOpaque_t preference;
  AMUR_CUBLAS_CHECK(cublasLtMatmulPreferenceInit(&preference));
  set(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, uint64_t{kWorkspace});
  set(preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
      uint32_t{CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE});
  set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, p.align_b);
  set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, p.align_a);
  set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, p.align_c);
  set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, p.align_c);
  cublasLtMatmulHeuristicResult_t choice{};
  int found = 0;
  const cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(
      library, &plan.product, &plan.b, &plan.a, &plan.c, &plan.c, &preference, 1, &choice, &found);
  if (status != CUBLAS_STATUS_SUCCESS || found == 0)
    throw InternalError(fmt::format(
        "cuBLASLt has no algorithm for a product [{}, {}] [{}, {}] of {} into {}: {}", p.m, p.k,
        p.k, p.n, name_of(p.ab), name_of(p.c), cublasLtGetStatusString(status)));
  plan.algorithm = choice.algo;
  plan.workspace = choice.workspaceSize;
  return plan;
}

// The library's handles by device and the plans so far, for all threads.
class Plans {
 public:
  struct Entry {
    cublasLtHandle_t library;
    Plan plan;
  };

  // The product's device is current.
  Entry at(const Product& product) {
    const std::lock_guard lock(mutex_);
    cublasLtHandle_t& library = libraries_[product.device];
    if (!library) AMUR_CUBLAS_CHECK(cublasLtCreate(&library));
    if (plans_.size() >= kMostPlans) plans_.clear();  // chunks have ever new numbers of tokens
    auto found = plans_.find(product);
    if (found == plans_.end()) found = plans_.emplace(product, make_plan(library, product)).first;
    return {library, found->second};
  }

 private:
  std::mutex mutex_;
  std::map<int, cublasLtHandle_t> libraries_;
  std::map<Product, Plan> plans_;
};

// Never destroyed: at the end of the program the driver may be gone already.
Plans& plans() {
  static Plans* all = new Plans;
  return *all;
}

}  // namespace

std::string gemm_text() {
  const size_t v = cublasLtGetVersion();
  return fmt::format("cuBLASLt {}.{}.{}", v / 10000, v % 10000 / 100, v % 100);
}

void CudaBackend::gemm(Transpose transpose_a, Transpose transpose_b, double alpha,
                       ConstTensorView a, ConstTensorView b, double beta, TensorView c,
                       Stream stream) {
  const cudaStream_t s = enter(c.device(), stream);
  const bool turned = transpose_a == Transpose::yes;
  auto [library, plan] =
      plans().at({c.device().index, turned, transpose_b == Transpose::yes, c.rows(), c.columns(),
                  turned ? a.rows() : a.columns(), a.dtype(), c.dtype(), alignment_of(a.raw()),
                  alignment_of(b.raw()), alignment_of(c.raw()), beta != 0});
  const Scratch workspace(plan.workspace, c.device(), stream);
  const float factors[2] = {static_cast<float>(alpha), static_cast<float>(beta)};
  const double wide_factors[2] = {alpha, beta};
  const bool f64 = a.dtype() == DType::f64;
  const auto factor = [&](int i) -> const void* {
    return f64 ? static_cast<const void*>(wide_factors + i) : factors + i;
  };
  AMUR_CUBLAS_CHECK(cublasLtMatmul(library, &plan.product, factor(0), b.raw(), &plan.b, a.raw(),
                                   &plan.a, factor(1), c.raw(), &plan.c, c.raw(), &plan.c,
                                   &plan.algorithm, workspace.as<void>(), plan.workspace, s));
}

}  // namespace amur::cuda
