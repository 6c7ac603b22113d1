// Products by cuBLASLt, which counts in columns: a row-major c = op(a) op(b) is its transpose
// c^T = op(b)^T op(a)^T, and a row-major matrix read column by column is already transposed.
//
// Only algorithms that add partial sums in a fixed order and in the compute type are taken: the one
// that was chosen by measuring (kernels/product.h), where there is one and it can take the product
// at hand, otherwise the one that the library's heuristic ranks first. So the bits of a result are
// a function of shapes, alignment, library, device and the recorded choices.
#include "kernels/gemm.h"

#include <cublasLt.h>

#include <algorithm>
#include <bit>
#include <cstdint>
#include <map>
#include <mutex>
#include <optional>
#include <vector>

#include "kernels/cuda/backend.cuh"

namespace amur::cuda {
namespace {

constexpr size_t kWorkspace = 32 << 20;  // what the algorithms of Hopper ask for at most
constexpr size_t kMostPlans = 8192;
constexpr int kMostCandidates = 16;
// Measuring goes round operands of so many bytes, more than the cache of any device holds.
constexpr size_t kRotation = size_t{256} << 20;
constexpr uint32_t kAligned = 64;

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
  if (memory == nullptr) return kAligned;
  return std::min(kAligned,
                  uint32_t{1} << std::countr_zero(reinterpret_cast<uintptr_t>(memory) | kAligned));
}

// What the choice of an algorithm depends on.
struct Key {
  int device = 0;
  Product product;
  uint32_t align_a = kAligned, align_b = kAligned, align_c = kAligned, align_bias = kAligned;

  auto operator<=>(const Key&) const = default;
  bool aligned() const { return std::min({align_a, align_b, align_c, align_bias}) == kAligned; }
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

template <class Value>
void set(cublasLtMatmulDescOpaque_t& product, cublasLtMatmulDescAttributes_t name, Value value) {
  AMUR_CUBLAS_CHECK(cublasLtMatmulDescSetAttribute(&product, name, &value, sizeof(value)));
}

// rows x columns in row-major order, which the library sees as columns x rows.
void describe(cublasLtMatrixLayoutOpaque_t& layout, DType dtype, int64_t rows, int64_t columns) {
  AMUR_CUBLAS_CHECK(cublasLtMatrixLayoutInit(&layout, type_of(dtype),
                                             static_cast<uint64_t>(columns),
                                             static_cast<uint64_t>(rows), columns));
}

struct ComputeType {
  cublasComputeType_t compute;
  cudaDataType_t scale;
};
ComputeType compute_type(const Product& p) {
  if (p.ab == DType::f64) return {CUBLAS_COMPUTE_64F, CUDA_R_64F};
  return {CUBLAS_COMPUTE_32F, CUDA_R_32F};
}

// All but the algorithm.
Plan described(const Key& key) {
  const Product& p = key.product;
  Plan plan{};
  const auto [compute, scale] = compute_type(p);
  AMUR_CUBLAS_CHECK(cublasLtMatmulDescInit(&plan.product, compute, scale));
  const bool a_turned = p.transpose_a == Transpose::yes, b_turned = p.transpose_b == Transpose::yes;
  // The library's first operand is b, its second a.
  set(plan.product, CUBLASLT_MATMUL_DESC_TRANSA, b_turned ? CUBLAS_OP_T : CUBLAS_OP_N);
  set(plan.product, CUBLASLT_MATMUL_DESC_TRANSB, a_turned ? CUBLAS_OP_T : CUBLAS_OP_N);
  if (p.bias) {  // one number a row of c^T
    set(plan.product, CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_EPILOGUE_BIAS);
    // Not read before there is a real one, but its alignment is looked at.
    set(plan.product, CUBLASLT_MATMUL_DESC_BIAS_POINTER,
        reinterpret_cast<const void*>(uintptr_t{key.align_bias}));
  }
  describe(plan.a, p.ab, a_turned ? p.k : p.m, a_turned ? p.m : p.k);
  describe(plan.b, p.ab, b_turned ? p.n : p.k, b_turned ? p.k : p.n);
  describe(plan.c, p.c, p.m, p.n);
  return plan;
}

// Of the library. With a name, unlike the library's type: nvcc 13.0 cannot take a vector of that.
struct Proposal {
  cublasLtMatmulAlgo_t algorithm;
  size_t workspace;
};

// What the library proposes, best first; none where it cannot compute the product.
std::vector<Proposal> proposals(cublasLtHandle_t library, const Key& key, Plan& plan, int most) {
  cublasLtMatmulPreferenceOpaque_t preference;
  AMUR_CUBLAS_CHECK(cublasLtMatmulPreferenceInit(&preference));
  set(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, uint64_t{kWorkspace});
  set(preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
      uint32_t{CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE});
  set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, key.align_b);
  set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, key.align_a);
  set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, key.align_c);
  set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, key.align_c);
  cublasLtMatmulHeuristicResult_t results[kMostCandidates];
  int found = 0;
  const cublasStatus_t status =
      cublasLtMatmulAlgoGetHeuristic(library, &plan.product, &plan.b, &plan.a, &plan.c, &plan.c,
                                     &preference, std::min(most, kMostCandidates), results, &found);
  std::vector<Proposal> all;
  if (status == CUBLAS_STATUS_NOT_SUPPORTED) return all;
  check_library(status, "cublasLtMatmulAlgoGetHeuristic", CallSite::here());
  for (int i = 0; i < found; ++i)
    if (results[i].state == CUBLAS_STATUS_SUCCESS)
      all.push_back({results[i].algo, results[i].workspaceSize});
  return all;
}

// The attributes by their numbers have these sizes in bytes.
constexpr std::array<size_t, ProductAlgorithm::kAttributes> kAttributeBytes = {4, 4, 4, 4, 4,
                                                                               4, 4, 2, 2};
static_assert(CUBLASLT_ALGO_CONFIG_ID == 0 && CUBLASLT_ALGO_CONFIG_SPLITK_NUM == 2 &&
              CUBLASLT_ALGO_CONFIG_STAGES_ID == 6 && CUBLASLT_ALGO_CONFIG_CLUSTER_SHAPE_ID == 8);

using AlgorithmWords = decltype(ProductAlgorithm::words);
static_assert(sizeof(cublasLtMatmulAlgo_t) == sizeof(AlgorithmWords));

ProductAlgorithm recorded(const cublasLtMatmulAlgo_t& algorithm) {
  ProductAlgorithm record{.words = std::bit_cast<AlgorithmWords>(algorithm)};
  for (size_t i = 0; i < record.attributes.size(); ++i) {
    uint32_t value = 0;  // the devices' hosts are little-endian
    size_t written = 0;
    if (cublasLtMatmulAlgoConfigGetAttribute(
            &algorithm, static_cast<cublasLtMatmulAlgoConfigAttributes_t>(i), &value,
            kAttributeBytes[i], &written) == CUBLAS_STATUS_SUCCESS)
      record.attributes[i] = value;
  }
  return record;
}

// Gives the plan this algorithm; false where the library cannot compute the product with it, on
// this device and in the workspace.
bool take(cublasLtHandle_t library, const ProductAlgorithm& wanted, Plan& plan) {
  const auto algorithm = std::bit_cast<cublasLtMatmulAlgo_t>(wanted.words);
  cublasLtMatmulHeuristicResult_t result{};
  if (cublasLtMatmulAlgoCheck(library, &plan.product, &plan.b, &plan.a, &plan.c, &plan.c,
                              &algorithm, &result) != CUBLAS_STATUS_SUCCESS ||
      result.workspaceSize > kWorkspace)
    return false;
  plan.algorithm = algorithm;
  plan.workspace = result.workspaceSize;
  return true;
}

std::string name_of_device(int device) {
  cudaDeviceProp properties{};
  AMUR_CUDA_CHECK(cudaGetDeviceProperties(&properties, device));
  return properties.name;
}

struct DeviceLibrary {
  cublasLtHandle_t library = nullptr;
  std::string name;  // of the device
};

// The library's handles by device, the choices, and the plans so far, for all threads.
class Plans {
 public:
  struct Entry {
    cublasLtHandle_t library;
    std::optional<Plan> plan;  // none: the library cannot compute the product so
  };

  // The product's device is current.
  Entry at(const Key& key) {
    const std::lock_guard lock(mutex_);
    DeviceLibrary& device = on(key.device);
    if (plans_.size() >= kMostPlans) plans_.clear();  // chunks have ever new numbers of tokens
    auto found = plans_.find(key);
    if (found == plans_.end()) found = plans_.emplace(key, make(device, key)).first;
    return {device.library, found->second};
  }

  cublasLtHandle_t library(int device) {
    const std::lock_guard lock(mutex_);
    return on(device).library;
  }
  std::string choice(int device, const Product& product) {
    const std::lock_guard lock(mutex_);
    return choice_name(on(device).name, gemm_text(), product);
  }

  void use(const std::map<std::string, std::string>& choices) {
    const std::lock_guard lock(mutex_);
    chosen_.clear();
    for (const auto& [name, value] : choices)
      if (name.starts_with(kProductChoices))
        if (const auto algorithm = parse_algorithm(value)) chosen_[name] = *algorithm;
    plans_.clear();
  }

 private:
  DeviceLibrary& on(int device) {
    DeviceLibrary& found = devices_[device];
    if (!found.library) {
      found.name = name_of_device(device);
      AMUR_CUBLAS_CHECK(cublasLtCreate(&found.library));
    }
    return found;
  }

  std::optional<Plan> make(const DeviceLibrary& device, const Key& key) const {
    Plan plan = described(key);
    if (key.aligned() && !chosen_.empty()) {
      const auto chosen = chosen_.find(choice_name(device.name, gemm_text(), key.product));
      if (chosen != chosen_.end() && take(device.library, chosen->second, plan)) return plan;
    }
    const auto proposed = proposals(device.library, key, plan, 1);
    if (proposed.empty()) return std::nullopt;
    plan.algorithm = proposed[0].algorithm;
    plan.workspace = proposed[0].workspace;
    return plan;
  }

  std::mutex mutex_;
  std::map<int, DeviceLibrary> devices_;
  std::map<std::string, ProductAlgorithm> chosen_;
  std::map<Key, std::optional<Plan>> plans_;
};

// Never destroyed: at the end of the program the driver may be gone already.
Plans& plans() {
  static Plans* all = new Plans;
  return *all;
}

struct Operands {
  const void *a, *b;
  void* c;
};

cublasStatus_t multiply(cublasLtHandle_t library, Plan& plan, const Product& p, double alpha,
                        double beta, const Operands& on, void* workspace, cudaStream_t stream) {
  const float factors[2] = {static_cast<float>(alpha), static_cast<float>(beta)};
  const double wide_factors[2] = {alpha, beta};
  const auto factor = [&](int i) -> const void* {
    return p.ab == DType::f64 ? static_cast<const void*>(wide_factors + i) : factors + i;
  };
  return cublasLtMatmul(library, &plan.product, factor(0), on.b, &plan.b, on.a, &plan.a, factor(1),
                        on.c, &plan.c, on.c, &plan.c, &plan.algorithm, workspace, plan.workspace,
                        stream);
}

// Numbers of either sign between 0.5 and 1, in each of the types, or small ones in f64: what a
// product takes of a device's power depends on its bits.
__global__ void __launch_bounds__(kThreads) fill_with_numbers_kernel(int64_t words, uint32_t* to) {
  for (int64_t i = first_item(); i < words; i += item_stride()) {
    uint32_t x = static_cast<uint32_t>(i) * 0x9e3779b9u;
    x = (x ^ (x >> 16)) * 0x85ebca6bu;
    to[i] = ((x ^ (x >> 13)) & 0x807f807fu) | 0x3f003f00u;
  }
}

// At least 64 MiB of them take a GPU as long as its host takes to queue some products.
constexpr size_t kHides = kRotation / 4;
void fill_with_numbers(void* arena, size_t bytes, cudaStream_t stream) {
  const auto words = static_cast<int64_t>(bytes / sizeof(uint32_t));
  fill_with_numbers_kernel<<<blocks_for(words), kThreads, 0, stream>>>(
      words, static_cast<uint32_t*>(arena));
  check_launch();
}

class Timer {
 public:
  Timer() {
    AMUR_CUDA_CHECK(cudaEventCreate(&begin_));
    AMUR_CUDA_CHECK(cudaEventCreate(&end_));
  }
  ~Timer() {
    cudaEventDestroy(begin_);
    cudaEventDestroy(end_);
  }
  Timer(const Timer&) = delete;
  Timer& operator=(const Timer&) = delete;
  void start(cudaStream_t stream) { AMUR_CUDA_CHECK(cudaEventRecord(begin_, stream)); }
  // Waits.
  double stop(cudaStream_t stream) {
    AMUR_CUDA_CHECK(cudaEventRecord(end_, stream));
    AMUR_CUDA_CHECK(cudaEventSynchronize(end_));
    float milliseconds = 0;
    AMUR_CUDA_CHECK(cudaEventElapsedTime(&milliseconds, begin_, end_));
    return milliseconds * 1e-3;
  }

 private:
  cudaEvent_t begin_{}, end_{};
};

constexpr size_t rounded(size_t bytes) {
  return (bytes + 255) / 256 * 256;
}
size_t bytes_of(DType dtype, int64_t rows, int64_t columns) {
  return rounded(static_cast<size_t>(rows * columns) * size_of(dtype));
}
struct OperandBytes {
  size_t a, b, c, bias;
  size_t all() const { return a + b + c + bias; }
};
OperandBytes operand_bytes(const Product& p) {
  return {bytes_of(p.ab, p.m, p.k), bytes_of(p.ab, p.k, p.n), bytes_of(p.c, p.m, p.n),
          p.bias ? bytes_of(p.c, 1, p.n) : 0};
}

// The fastest of what the library proposes; none where it proposes nothing. Each candidate is
// taken from its record before it is timed, so that a resume computes what was measured.
std::optional<ProductAlgorithm> measure(cublasLtHandle_t library, const Key& key, void* arena,
                                        size_t arena_bytes, void* workspace, cudaStream_t stream) {
  constexpr int kRounds = 7;
  const Product& p = key.product;
  const OperandBytes bytes = operand_bytes(p);
  const size_t copies = std::max<size_t>(arena_bytes / bytes.all(), 1);
  const auto place = [&](size_t copy) {
    return static_cast<std::byte*>(arena) + copy % copies * bytes.all();
  };
  Plan plan = described(key);
  std::vector<ProductAlgorithm> algorithms;
  std::vector<Plan> candidates;
  for (const Proposal& proposed : proposals(library, key, plan, kMostCandidates)) {
    const ProductAlgorithm algorithm = recorded(proposed.algorithm);
    if (!take(library, algorithm, plan)) continue;
    algorithms.push_back(algorithm);
    candidates.push_back(plan);
  }
  // A run is long enough for the clock, and short enough for the user.
  const double operations =
      2.0 * static_cast<double>(p.m) * static_cast<double>(p.n) * static_cast<double>(p.k);
  const int repeats = operations < 2e10 ? 8 : operations < 2e11 ? 2 : 1;
  Timer timer;
  size_t copy = 0;
  std::vector<std::vector<double>> seconds(candidates.size());
  std::vector<bool> failed(candidates.size());
  // In turn, so that the device's clock is the same for all; the first round warms up.
  for (int round = 0; round <= kRounds; ++round) {
    for (size_t i = 0; i < candidates.size(); ++i) {
      if (failed[i]) continue;
      // Results lie among the operands of others, and the clock shall start when the products are
      // queued. Where all of them are small, neither matters.
      if (arena_bytes >= kHides) fill_with_numbers(arena, arena_bytes, stream);
      timer.start(stream);
      for (int r = 0; r < repeats && !failed[i]; ++r) {
        std::byte* at = place(copy++);
        const Operands on{at, at + bytes.a, at + bytes.a + bytes.b};
        if (p.bias)
          set(candidates[i].product, CUBLASLT_MATMUL_DESC_BIAS_POINTER,
              static_cast<const void*>(at + bytes.a + bytes.b + bytes.c));
        failed[i] = multiply(library, candidates[i], p, 1, p.adds ? 1 : 0, on, workspace, stream) !=
                    CUBLAS_STATUS_SUCCESS;
      }
      const double took = timer.stop(stream);
      if (round > 0) seconds[i].push_back(took);
      if (failed[i]) seconds[i].clear();
    }
  }
  const std::optional<size_t> best = fastest(seconds);
  if (!best) return std::nullopt;
  return algorithms[*best];
}

}  // namespace

std::string gemm_text() {
  const size_t v = cublasLtGetVersion();
  return fmt::format("cuBLASLt {}.{}.{}", v / 10000, v % 10000 / 100, v % 100);
}

std::map<std::string, std::string> CudaBackend::measure_products(
    std::span<const Product> products, const std::map<std::string, std::string>& known,
    Device device) {
  const Stream stream(device);
  const cudaStream_t s = enter(device, stream);
  std::map<std::string, Product> wanted;
  size_t largest = 0;
  for (const Product& product : products) {
    const std::string name = plans().choice(device.index, product);
    if (known.contains(name)) continue;
    const auto [at, first] = wanted.emplace(name, product);
    if (!first) at->second = std::max(at->second, product);  // they differ in rows
    largest = std::max(largest, operand_bytes(product).all());
  }
  std::map<std::string, std::string> chosen;
  if (wanted.empty()) return chosen;
  const size_t arena_bytes = std::max(largest, std::min(kRotation, 16 * largest));
  const Scratch arena(arena_bytes, device, stream), workspace(kWorkspace, device, stream);
  fill_with_numbers(arena.as<void>(), arena_bytes, s);
  for (const auto& [name, product] : wanted)
    if (const auto algorithm = measure(plans().library(device.index), {device.index, product},
                                       arena.as<void>(), arena_bytes, workspace.as<void>(), s))
      chosen[name] = to_text(*algorithm);
  return chosen;
}

void CudaBackend::use_product_choices(const std::map<std::string, std::string>& choices) {
  plans().use(choices);
}

void CudaBackend::gemm(Transpose transpose_a, Transpose transpose_b, double alpha,
                       ConstTensorView a, ConstTensorView b, ConstTensorView bias, double beta,
                       TensorView c, Stream stream) {
  const cudaStream_t s = enter(c.device(), stream);
  const bool turned = transpose_a == Transpose::yes;
  Key key{c.device().index,
          {transpose_a, transpose_b, c.rows(), c.columns(), turned ? a.rows() : a.columns(),
           a.dtype(), c.dtype(), beta != 0, bias.defined()},
          alignment_of(a.raw()),
          alignment_of(b.raw()),
          alignment_of(c.raw()),
          kAligned};
  // The library adds a bias of c's type, and none in f64.
  std::optional<Scratch> rounded_bias;
  const void* bias_data = bias.defined() ? bias.raw() : nullptr;
  if (bias.defined() && c.dtype() != DType::f64 && bias.dtype() != c.dtype()) {
    rounded_bias.emplace(bias.bytes(), c.device(), stream);
    bias_data = rounded_bias->as<void>();
    cast(bias, TensorView(rounded_bias->as<void>(), bias.shape(), c.dtype(), c.device()), stream);
  }
  key.align_bias = alignment_of(bias_data);
  auto [library, plan] = c.dtype() == DType::f64 && bias.defined()
                             ? Plans::Entry{nullptr, std::nullopt}
                             : plans().at(key);
  if (!plan && bias.defined()) {
    gemm(transpose_a, transpose_b, alpha, a, b, {}, beta, c, stream);
    const DType wide = parameter_dtype(c.dtype());
    std::optional<Scratch> widened;
    if (bias.dtype() != wide) {
      widened.emplace(static_cast<size_t>(bias.elements()) * size_of(wide), c.device(), stream);
      const TensorView to(widened->as<void>(), bias.shape(), wide, c.device());
      cast(bias, to, stream);
      bias = to;
    }
    return add_bias(bias, c.reshape({c.rows(), c.columns()}), stream);
  }
  if (!plan)
    throw InternalError(
        fmt::format("cuBLASLt has no algorithm for a product {}", to_text(key.product)));
  if (bias.defined()) set(plan->product, CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias_data);
  const Scratch workspace(plan->workspace, c.device(), stream);
  check_library(multiply(library, *plan, key.product, alpha, beta, {a.raw(), b.raw(), c.raw()},
                         workspace.as<void>(), s),
                "cublasLtMatmul", CallSite::here());
}

}  // namespace amur::cuda
