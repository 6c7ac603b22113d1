// Products as cuBLASLt has them, of matrices that are read column by column; sums in double.
#include <algorithm>
#include <cstring>
#include <vector>

#include <cublasLt.h>
#include <fmt/format.h>
#include "src/core/dtype.h"

namespace {

using amur::bf16;
using amur::emulation::fail;
using Layout = cublasLtMatrixLayoutOpaque_t;
constexpr size_t kWorkspace = 1000;
constexpr int kAlgorithms = 3;  // which all give the same
constexpr uint32_t kFirstId = 60;

template <class T>
void read_as(const void* from, const Layout& layout, bool turned, std::vector<double>& to) {
  const uint64_t height = turned ? layout.columns : layout.rows;
  const auto* elements = static_cast<const T*>(from);
  for (uint64_t c = 0; c < layout.columns; ++c)
    for (uint64_t r = 0; r < layout.rows; ++r)
      to[turned ? c + r * height : r + c * height] =
          static_cast<double>(elements[r + c * static_cast<uint64_t>(layout.stride)]);
}
// Without gaps, transposed where `turned`.
std::vector<double> read(const void* from, const Layout& layout, bool turned) {
  std::vector<double> to(layout.rows * layout.columns);
  switch (layout.type) {
    case CUDA_R_64F:
      read_as<double>(from, layout, turned, to);
      break;
    case CUDA_R_32F:
      read_as<float>(from, layout, turned, to);
      break;
    case CUDA_R_16BF:
      read_as<bf16>(from, layout, turned, to);
  }
  return to;
}
void write(void* to, const Layout& layout, uint64_t row, uint64_t column, double value) {
  const uint64_t at = row + column * static_cast<uint64_t>(layout.stride);
  switch (layout.type) {
    case CUDA_R_64F:
      static_cast<double*>(to)[at] = value;
      break;
    case CUDA_R_32F:
      static_cast<float*>(to)[at] = static_cast<float>(value);
      break;
    case CUDA_R_16BF:
      static_cast<bf16*>(to)[at] = bf16(static_cast<float>(value));
  }
}

struct Product {
  cublasLtMatmulDescOpaque_t what;
  double alpha, beta;
  const void *a, *b;
  Layout a_layout, b_layout, d_layout;
  void* d;
  void* workspace;

  void operator()() const {
    std::memset(workspace, 0xff, kWorkspace);
    const bool a_turned = what.a == CUBLAS_OP_T, b_turned = what.b == CUBLAS_OP_T;
    const uint64_t m = d_layout.rows, n = d_layout.columns;
    const uint64_t k = a_turned ? a_layout.rows : a_layout.columns;
    const std::vector<double> left = read(a, a_layout, a_turned);   // m x k
    const std::vector<double> right = read(b, b_layout, b_turned);  // k x n
    std::vector<double> before, offset(m);
    if (beta != 0) before = read(d, d_layout, false);
    if (what.epilogue == CUBLASLT_EPILOGUE_BIAS)
      offset = read(what.bias, {d_layout.type, m, 1, static_cast<int64_t>(m)}, false);
    std::vector<double> sums(m);
    for (uint64_t j = 0; j < n; ++j) {
      sums.assign(m, 0);
      for (uint64_t l = 0; l < k; ++l)
        for (uint64_t i = 0; i < m; ++i) sums[i] += left[i + l * m] * right[l + j * k];
      for (uint64_t i = 0; i < m; ++i)
        write(d, d_layout, i, j,
              alpha * sums[i] + (beta != 0 ? beta * before[i + j * m] : 0) + offset[i]);
    }
  }
};

}  // namespace

const char* cublasLtGetStatusString(cublasStatus_t status) {
  return status == CUBLAS_STATUS_SUCCESS         ? "success"
         : status == CUBLAS_STATUS_INVALID_VALUE ? "an invalid value"
                                                 : "not supported";
}
size_t cublasLtGetVersion() {
  return 130000;
}
cublasStatus_t cublasLtCreate(cublasLtHandle_t* library) {
  *library = nullptr;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulDescInit(cublasLtMatmulDescOpaque_t* product,
                                      cublasComputeType_t compute, cudaDataType_t scale) {
  *product = {compute, CUBLAS_OP_N, CUBLAS_OP_N, CUBLASLT_EPILOGUE_DEFAULT, nullptr};
  return (scale == CUDA_R_64F) == (compute == CUBLAS_COMPUTE_64F) ? CUBLAS_STATUS_SUCCESS
                                                                  : CUBLAS_STATUS_INVALID_VALUE;
}
cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDescOpaque_t* product,
                                              cublasLtMatmulDescAttributes_t name,
                                              const void* value, size_t bytes) {
  const auto set = [&](auto& to) {
    if (bytes != sizeof(to)) return CUBLAS_STATUS_INVALID_VALUE;
    std::memcpy(&to, value, bytes);
    return CUBLAS_STATUS_SUCCESS;
  };
  switch (name) {
    case CUBLASLT_MATMUL_DESC_TRANSA:
      return set(product->a);
    case CUBLASLT_MATMUL_DESC_TRANSB:
      return set(product->b);
    case CUBLASLT_MATMUL_DESC_EPILOGUE:
      return set(product->epilogue);
    case CUBLASLT_MATMUL_DESC_BIAS_POINTER:
      return set(product->bias);
  }
  return CUBLAS_STATUS_INVALID_VALUE;
}
cublasStatus_t cublasLtMatrixLayoutInit(Layout* layout, cudaDataType_t type, uint64_t rows,
                                        uint64_t columns, int64_t stride) {
  if (rows == 0 || columns == 0 || stride < static_cast<int64_t>(rows))
    return CUBLAS_STATUS_INVALID_VALUE;
  *layout = {type, rows, columns, stride};
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceInit(cublasLtMatmulPreferenceOpaque_t* preference) {
  *preference = {0, {256, 256, 256, 256}};
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreferenceOpaque_t* preference,
                                                    cublasLtMatmulPreferenceAttributes_t name,
                                                    const void* value, size_t bytes) {
  uint32_t scheme = 0;
  void* to = &scheme;
  size_t size = sizeof(scheme);
  if (name == CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES) {
    to = &preference->workspace;
    size = sizeof(preference->workspace);
  } else if (name != CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK) {
    to = &preference->alignment[name - CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES];
  }
  if (bytes != size) return CUBLAS_STATUS_INVALID_VALUE;
  std::memcpy(to, value, bytes);
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t, cublasLtMatmulDescOpaque_t*,
                                              Layout*, Layout*, Layout*, Layout*,
                                              cublasLtMatmulPreferenceOpaque_t* preference,
                                              int asked, cublasLtMatmulHeuristicResult_t* results,
                                              int* found) {
  *found = preference->workspace >= kWorkspace ? std::min(asked, kAlgorithms) : 0;
  for (int i = 0; i < *found; ++i) {
    cublasLtMatmulAlgo_t algorithm{};
    algorithm.attributes[CUBLASLT_ALGO_CONFIG_ID] = kFirstId + static_cast<uint32_t>(i);
    std::memcpy(algorithm.alignment, preference->alignment, sizeof(preference->alignment));
    results[i] = {algorithm, kWorkspace, CUBLAS_STATUS_SUCCESS};
  }
  return *found > 0 ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_NOT_SUPPORTED;
}
cublasStatus_t cublasLtMatmulAlgoConfigGetAttribute(const cublasLtMatmulAlgo_t* algorithm,
                                                    cublasLtMatmulAlgoConfigAttributes_t name,
                                                    void* value, size_t bytes, size_t* written) {
  if (bytes > sizeof(uint32_t)) return CUBLAS_STATUS_INVALID_VALUE;
  std::memcpy(value, &algorithm->attributes[name], bytes);
  *written = bytes;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulAlgoCheck(cublasLtHandle_t, cublasLtMatmulDescOpaque_t*, Layout*,
                                       Layout*, Layout*, Layout*,
                                       const cublasLtMatmulAlgo_t* algorithm,
                                       cublasLtMatmulHeuristicResult_t* result) {
  const uint32_t id = algorithm->attributes[CUBLASLT_ALGO_CONFIG_ID];
  if (id < kFirstId || id >= kFirstId + kAlgorithms) return CUBLAS_STATUS_NOT_SUPPORTED;
  *result = {*algorithm, kWorkspace, CUBLAS_STATUS_SUCCESS};
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t, const cublasLtMatmulDescOpaque_t* product,
                              const void* alpha, const void* a, const Layout* a_layout,
                              const void* b, const Layout* b_layout, const void* beta,
                              const void* c, const Layout* c_layout, void* d,
                              const Layout* d_layout, const cublasLtMatmulAlgo_t* algorithm,
                              void* workspace, size_t workspace_bytes, cudaStream_t) {
  const auto height = [](const Layout& l, cublasOperation_t o) {
    return o == CUBLAS_OP_N ? l.rows : l.columns;
  };
  const auto width = [](const Layout& l, cublasOperation_t o) {
    return o == CUBLAS_OP_N ? l.columns : l.rows;
  };
  const void* matrices[4] = {a, b, c, d};
  for (int i = 0; i < 4; ++i)
    if (reinterpret_cast<uintptr_t>(matrices[i]) % algorithm->alignment[i] != 0)
      return CUBLAS_STATUS_INVALID_VALUE;
  if (c != d || std::memcmp(c_layout, d_layout, sizeof(Layout)) != 0)
    return CUBLAS_STATUS_NOT_SUPPORTED;
  if (workspace_bytes < kWorkspace || a_layout->type != b_layout->type ||
      width(*a_layout, product->a) != height(*b_layout, product->b) ||
      height(*a_layout, product->a) != d_layout->rows ||
      width(*b_layout, product->b) != d_layout->columns)
    return CUBLAS_STATUS_INVALID_VALUE;
  const bool f64 = product->compute == CUBLAS_COMPUTE_64F;
  const auto factor = [&](const void* at) {
    return f64 ? *static_cast<const double*>(at)
               : static_cast<double>(*static_cast<const float*>(at));
  };
  const Product whole{*product,  factor(alpha), factor(beta), a, b,
                      *a_layout, *b_layout,     *d_layout,    d, workspace};
  amur::emulation::enqueue("cublasLtMatmul", whole);
  return CUBLAS_STATUS_SUCCESS;
}
