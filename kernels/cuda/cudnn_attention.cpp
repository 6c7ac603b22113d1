// The one place that calls cuDNN. The graphs are those that its fused attention engines recognise:
// the operations of FlashAttention-2 (Dao, 2023) one by one, whose intermediate tensors are
// "virtual" and never stored.
#include "kernels/cuda/cudnn_attention.h"

#include <cudnn_graph.h>
#include <dlfcn.h>
#include <fmt/format.h>

#include <array>
#include <limits>
#include <optional>
#include <span>
#include <type_traits>
#include <utility>
#include <vector>

#include "kernels/cuda/launch.h"

namespace amur::cuda {
namespace {

// Versions before are known for wrong gradients of packed texts: rows behind a text's end (before
// 9.10), a work space that was not initialised (before 9.18, Hopper).
constexpr size_t kOldest = 91801;
constexpr const char* kOldestText = "9.18.1";

struct Library {
  CudnnSearch search;
  decltype(&cudnnGetVersion) version = nullptr;
  decltype(&cudnnGetErrorString) error_string = nullptr;
  decltype(&cudnnGetLastErrorString) last_error_string = nullptr;
  decltype(&cudnnCreate) create = nullptr;
  decltype(&cudnnDestroy) destroy = nullptr;
  decltype(&cudnnSetStream) set_stream = nullptr;
  decltype(&cudnnBackendCreateDescriptor) create_descriptor = nullptr;
  decltype(&cudnnBackendDestroyDescriptor) destroy_descriptor = nullptr;
  decltype(&cudnnBackendSetAttribute) set_attribute = nullptr;
  decltype(&cudnnBackendGetAttribute) get_attribute = nullptr;
  decltype(&cudnnBackendFinalize) finalize = nullptr;
  decltype(&cudnnBackendExecute) execute = nullptr;

  Library() {
    void* library = nullptr;
    std::string problems;
    for (const char* name : {"libcudnn_graph.so.9", "libcudnn.so.9"}) {
      library = dlopen(name, RTLD_NOW | RTLD_LOCAL);
      if (library) break;
      problems = dlerror();
    }
    if (!library) {
      search.problem = problems;
      return;
    }
    const auto find = [&](auto& function, const char* name) {
      function =
          reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(library, name));
      if (!function) search.problem = fmt::format("cuDNN has no {}", name);
    };
    find(version, "cudnnGetVersion");
    find(error_string, "cudnnGetErrorString");
    find(last_error_string, "cudnnGetLastErrorString");
    find(create, "cudnnCreate");
    find(destroy, "cudnnDestroy");
    find(set_stream, "cudnnSetStream");
    find(create_descriptor, "cudnnBackendCreateDescriptor");
    find(destroy_descriptor, "cudnnBackendDestroyDescriptor");
    find(set_attribute, "cudnnBackendSetAttribute");
    find(get_attribute, "cudnnBackendGetAttribute");
    find(finalize, "cudnnBackendFinalize");
    find(execute, "cudnnBackendExecute");
    if (!search.usable()) return;
    const size_t v = version();
    search.text = fmt::format("cuDNN {}.{}.{}", v / 10000, v % 10000 / 100, v % 100);
    if (v < kOldest)
      search.problem =
          fmt::format("{} is too old: {} or newer is needed", search.text, kOldestText);
  }
};

const Library& library() {
  static const Library loaded;
  return loaded;
}

void check(cudnnStatus_t status, const char* what) {
  if (status == CUDNN_STATUS_SUCCESS) [[likely]]
    return;
  std::array<char, 1024> last{};
  library().last_error_string(last.data(), last.size());
  throw CudnnRefusal(fmt::format("cuDNN: {}: {}{}{}", what, library().error_string(status),
                                 last[0] ? ": " : "", last.data()));
}

template <class T>
struct TypeOf;
#define AMUR_CUDNN_TYPE(type, name)                            \
  template <>                                                  \
  struct TypeOf<type> {                                        \
    static constexpr cudnnBackendAttributeType_t value = name; \
  }
AMUR_CUDNN_TYPE(bool, CUDNN_TYPE_BOOLEAN);
AMUR_CUDNN_TYPE(int64_t, CUDNN_TYPE_INT64);
AMUR_CUDNN_TYPE(char, CUDNN_TYPE_CHAR);
AMUR_CUDNN_TYPE(const void*, CUDNN_TYPE_VOID_PTR);
AMUR_CUDNN_TYPE(cudnnHandle_t, CUDNN_TYPE_HANDLE);
AMUR_CUDNN_TYPE(cudnnBackendDescriptor_t, CUDNN_TYPE_BACKEND_DESCRIPTOR);
AMUR_CUDNN_TYPE(cudnnDataType_t, CUDNN_TYPE_DATA_TYPE);
AMUR_CUDNN_TYPE(cudnnPointwiseMode_t, CUDNN_TYPE_POINTWISE_MODE);
AMUR_CUDNN_TYPE(cudnnReduceTensorOp_t, CUDNN_TYPE_REDUCTION_OPERATOR_TYPE);
AMUR_CUDNN_TYPE(cudnnBackendHeurMode_t, CUDNN_TYPE_HEUR_MODE);
AMUR_CUDNN_TYPE(cudnnBackendNumericalNote_t, CUDNN_TYPE_NUMERICAL_NOTE);
#undef AMUR_CUDNN_TYPE

class Descriptor {
 public:
  explicit Descriptor(cudnnBackendDescriptorType_t type) {
    check(library().create_descriptor(type, &descriptor_), "cudnnBackendCreateDescriptor");
  }
  ~Descriptor() {
    if (descriptor_) library().destroy_descriptor(descriptor_);
  }
  Descriptor(Descriptor&& other) noexcept
      : descriptor_(std::exchange(other.descriptor_, nullptr)) {}
  Descriptor& operator=(Descriptor&&) = delete;

  template <class T>
  void set(cudnnBackendAttributeName_t name, std::span<const T> values, const char* what) {
    check(library().set_attribute(descriptor_, name, TypeOf<T>::value,
                                  static_cast<int64_t>(values.size()), values.data()),
          what);
  }
  template <class T>
  void set(cudnnBackendAttributeName_t name, const T& value, const char* what) {
    set(name, std::span<const T>(&value, 1), what);
  }
  void set(cudnnBackendAttributeName_t name, const Descriptor& other, const char* what) {
    set(name, other.descriptor_, what);
  }
  void finalize(const char* what) { check(library().finalize(descriptor_), what); }

  // Up to `most` values; for descriptors `values` are filled in place.
  template <class T>
  int64_t get(cudnnBackendAttributeName_t name, std::span<T> values, const char* what) const {
    int64_t count = 0;
    check(library().get_attribute(descriptor_, name, TypeOf<T>::value,
                                  static_cast<int64_t>(values.size()), &count, values.data()),
          what);
    return count;
  }
  template <class T>
  T get(cudnnBackendAttributeName_t name, const char* what) const {
    T value{};
    get(name, std::span<T>(&value, 1), what);
    return value;
  }

  cudnnBackendDescriptor_t raw() const { return descriptor_; }
  cudnnBackendDescriptor_t release() { return std::exchange(descriptor_, nullptr); }

 private:
  cudnnBackendDescriptor_t descriptor_ = nullptr;
};

// The tensors of a graph that are given when it is run.
enum Given : int64_t {
  kQ = 1,
  kK,
  kV,
  kOutput,
  kLse,
  kScale,
  kLowest,
  kOne,
  kQkvOffsets,
  kOutputOffsets,
  kLseOffsets,
  kLengths,
  kDOutput,
  kDQ,
  kDK,
  kDV,
  kRowSums,
  kFirstVirtual,
};

using Dims = std::array<int64_t, 4>;
Dims packed_strides(const Dims& dims) {
  return {dims[1] * dims[2] * dims[3], dims[2] * dims[3], dims[3], 1};
}
Dims swapped(const Dims& dims) {
  return {dims[0], dims[1], dims[3], dims[2]};
}

// A graph in the making. Tensors are named by their place in it.
class Graph {
 public:
  using Tensor = size_t;

  explicit Graph(const AttentionShape& shape) : s_(shape) {
    const int64_t b = s_.sequences, h = s_.heads, n = s_.longest, d = s_.head_size;
    offsets_of_qkv_ = offsets(kQkvOffsets);
    offsets_of_output_ = offsets(kOutputOffsets);
    offsets_of_lse_ = offsets(kLseOffsets);
    lengths_ = add({kLengths, {b, 1, 1, 1}, {1, 1, 1, 1}, CUDNN_DATA_INT32});
    scale_ = number(kScale);
    rows_ = {b, h, n, d};
    qkv_strides_ = {n * 3 * h * d, d, 3 * h * d, 1};
    output_strides_ = {n * h * d, d, h * d, 1};
    scores_ = {b, h, n, n};
    values_ = {b, h, n, 1};
  }

  Tensor scale() const { return scale_; }
  Tensor number(int64_t id) {
    return add({id, {1, 1, 1, 1}, {1, 1, 1, 1}, CUDNN_DATA_FLOAT, false, true});
  }
  // Of q, k and v or their gradients, and of the output or its gradient. `transposed`: [b, h, d,
  // s].
  Tensor part(int64_t id, bool transposed = false) {
    return rows(id, qkv_strides_, offsets_of_qkv_, transposed);
  }
  Tensor output(int64_t id) { return rows(id, output_strides_, offsets_of_output_, false); }
  // One f32 a token and head.
  Tensor values(int64_t id) {
    return add({id,
                values_,
                {s_.heads * s_.longest, 1, s_.heads, 1},
                CUDNN_DATA_FLOAT,
                false,
                false,
                offsets_of_lse_});
  }

  Tensor virtual_scores(cudnnDataType_t type = CUDNN_DATA_FLOAT) {
    return add({0, scores_, packed_strides(scores_), type, true});
  }
  Tensor virtual_values() {
    return add({0, values_, packed_strides(values_), CUDNN_DATA_FLOAT, true});
  }
  Tensor virtual_rows() { return add({0, rows_, packed_strides(rows_), CUDNN_DATA_FLOAT, true}); }

  // y = a b, over the places that there are: `m`, `n`, `k` say which of the three sides are texts.
  void multiply(Tensor a, Tensor b, Tensor y, bool m, bool n, bool k) {
    Descriptor product(CUDNN_BACKEND_MATMUL_DESCRIPTOR);
    product.set(CUDNN_ATTR_MATMUL_COMP_TYPE, CUDNN_DATA_FLOAT, "product's type");
    product.finalize("product");
    Descriptor& op = operation(CUDNN_BACKEND_OPERATION_MATMUL_DESCRIPTOR);
    op.set(CUDNN_ATTR_OPERATION_MATMUL_ADESC, tensors_[a], "product's a");
    op.set(CUDNN_ATTR_OPERATION_MATMUL_BDESC, tensors_[b], "product's b");
    op.set(CUDNN_ATTR_OPERATION_MATMUL_CDESC, tensors_[y], "product's c");
    op.set(CUDNN_ATTR_OPERATION_MATMUL_DESC, product, "product's description");
    if (m)
      op.set(CUDNN_ATTR_OPERATION_MATMUL_GEMM_M_OVERRIDE_DESC, tensors_[lengths_], "product's m");
    if (n)
      op.set(CUDNN_ATTR_OPERATION_MATMUL_GEMM_N_OVERRIDE_DESC, tensors_[lengths_], "product's n");
    if (k)
      op.set(CUDNN_ATTR_OPERATION_MATMUL_GEMM_K_OVERRIDE_DESC, tensors_[lengths_], "product's k");
    op.finalize("operation of a product");
    parts_.push_back(std::move(product));
  }

  // y = mode(x), mode(x, b) or mode(x, b, t)
  void pointwise(cudnnPointwiseMode_t mode, Tensor x, std::optional<Tensor> b,
                 std::optional<Tensor> t, Tensor y, cudnnDataType_t type = CUDNN_DATA_FLOAT,
                 int64_t axis = -1) {
    Descriptor point(CUDNN_BACKEND_POINTWISE_DESCRIPTOR);
    point.set(CUDNN_ATTR_POINTWISE_MODE, mode, "mode");
    point.set(CUDNN_ATTR_POINTWISE_MATH_PREC, type, "type of a mode");
    if (axis >= 0) point.set(CUDNN_ATTR_POINTWISE_AXIS, axis, "axis");
    point.finalize("mode");
    Descriptor& op = operation(CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR);
    op.set(CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR, point, "operation's mode");
    op.set(CUDNN_ATTR_OPERATION_POINTWISE_XDESC, tensors_[x], "operation's x");
    if (b) op.set(CUDNN_ATTR_OPERATION_POINTWISE_BDESC, tensors_[*b], "operation's b");
    if (t) op.set(CUDNN_ATTR_OPERATION_POINTWISE_TDESC, tensors_[*t], "operation's t");
    op.set(CUDNN_ATTR_OPERATION_POINTWISE_YDESC, tensors_[y], "operation's y");
    op.finalize("operation by element");
    parts_.push_back(std::move(point));
  }
  // The same, into new virtual scores.
  Tensor score(cudnnPointwiseMode_t mode, Tensor x, std::optional<Tensor> b = {}) {
    const Tensor y = virtual_scores();
    pointwise(mode, x, b, {}, y);
    return y;
  }

  void reduce(cudnnReduceTensorOp_t mode, Tensor x, Tensor y) {
    Descriptor reduction(CUDNN_BACKEND_REDUCTION_DESCRIPTOR);
    reduction.set(CUDNN_ATTR_REDUCTION_COMP_TYPE, CUDNN_DATA_FLOAT, "type of a reduction");
    reduction.set(CUDNN_ATTR_REDUCTION_OPERATOR, mode, "mode of a reduction");
    reduction.finalize("reduction");
    Descriptor& op = operation(CUDNN_BACKEND_OPERATION_REDUCTION_DESCRIPTOR);
    op.set(CUDNN_ATTR_OPERATION_REDUCTION_DESC, reduction, "reduction's mode");
    op.set(CUDNN_ATTR_OPERATION_REDUCTION_XDESC, tensors_[x], "reduction's x");
    op.set(CUDNN_ATTR_OPERATION_REDUCTION_YDESC, tensors_[y], "reduction's y");
    op.finalize("operation of a reduction");
    parts_.push_back(std::move(reduction));
  }

  // x transposed, as a factor of a product.
  Tensor transposed_scores(Tensor x) {
    return reshape(x, {0, scores_, swapped(packed_strides(scores_)), CUDNN_DATA_BFLOAT16, true});
  }
  Tensor transposed_part(Tensor x) {
    return reshape(x, {0, rows_, qkv_strides_, CUDNN_DATA_BFLOAT16, true, false, offsets_of_qkv_});
  }

  // Scores of places behind a text's end become the lowest number.
  Tensor masked(Tensor scores) {
    const auto index = [&](int64_t axis) {
      const Tensor y = virtual_scores(CUDNN_DATA_INT32);
      pointwise(CUDNN_POINTWISE_GEN_INDEX, scores, {}, {}, y, CUDNN_DATA_INT32, axis);
      return y;
    };
    const auto logical = [&](cudnnPointwiseMode_t mode, Tensor x, Tensor b) {
      const Tensor y = virtual_scores(CUDNN_DATA_BOOLEAN);
      pointwise(mode, x, b, {}, y, CUDNN_DATA_BOOLEAN);
      return y;
    };
    const Tensor row = index(2), column = index(3);
    const Tensor row_there = logical(CUDNN_POINTWISE_CMP_LT, row, lengths_);
    const Tensor column_there = logical(CUDNN_POINTWISE_CMP_LT, column, lengths_);
    const Tensor there = logical(CUDNN_POINTWISE_LOGICAL_AND, row_there, column_there);
    const Tensor y = virtual_scores();
    pointwise(CUDNN_POINTWISE_BINARY_SELECT, scores, number(kLowest), there, y);
    return y;
  }

  Descriptor finish(cudnnHandle_t handle) {
    std::vector<cudnnBackendDescriptor_t> operations;
    for (const Descriptor& op : operations_) operations.push_back(op.raw());
    Descriptor graph(CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR);
    graph.set(CUDNN_ATTR_OPERATIONGRAPH_OPS, std::span<const cudnnBackendDescriptor_t>(operations),
              "operations");
    if (handle) graph.set(CUDNN_ATTR_OPERATIONGRAPH_HANDLE, handle, "handle of a graph");
    graph.finalize("graph");
    return graph;
  }

 private:
  struct Description {
    int64_t id;  // 0: it gets one
    Dims dims, strides;
    cudnnDataType_t type;
    bool is_virtual = false, by_value = false;
    std::optional<Tensor> offsets = {};
  };

  template <size_t size>
  static void set_shape(Descriptor& tensor, const std::array<int64_t, size>& dims,
                        const std::array<int64_t, size>& strides) {
    tensor.set(CUDNN_ATTR_TENSOR_DIMENSIONS, std::span<const int64_t>(dims), "dimensions");
    tensor.set(CUDNN_ATTR_TENSOR_STRIDES, std::span<const int64_t>(strides), "strides");
  }

  Tensor add(const Description& d) {
    Descriptor tensor(CUDNN_BACKEND_TENSOR_DESCRIPTOR);
    tensor.set(CUDNN_ATTR_TENSOR_DATA_TYPE, d.type, "type of a tensor");
    set_shape(tensor, d.dims, d.strides);
    tensor.set(CUDNN_ATTR_TENSOR_UNIQUE_ID, d.id ? d.id : next_id_++, "name of a tensor");
    tensor.set(CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, int64_t{16}, "alignment");
    if (d.is_virtual) tensor.set(CUDNN_ATTR_TENSOR_IS_VIRTUAL, true, "virtual tensor");
    if (d.by_value) tensor.set(CUDNN_ATTR_TENSOR_IS_BY_VALUE, true, "number");
    if (d.offsets)
      tensor.set(CUDNN_ATTR_TENSOR_RAGGED_OFFSET_DESC, tensors_[*d.offsets], "offsets of a tensor");
    tensor.finalize("tensor");
    tensors_.push_back(std::move(tensor));
    return tensors_.size() - 1;
  }
  Tensor offsets(int64_t id) {
    return add({id, {s_.sequences + 1, 1, 1, 1}, {1, 1, 1, 1}, CUDNN_DATA_INT64});
  }
  Tensor rows(int64_t id, const Dims& strides, Tensor offsets, bool transposed) {
    return add({id, transposed ? swapped(rows_) : rows_, transposed ? swapped(strides) : strides,
                CUDNN_DATA_BFLOAT16, false, false, offsets});
  }
  Tensor reshape(Tensor x, const Description& to) {
    const Tensor y = add(to);
    Descriptor& op = operation(CUDNN_BACKEND_OPERATION_RESHAPE_DESCRIPTOR);
    op.set(CUDNN_ATTR_OPERATION_RESHAPE_XDESC, tensors_[x], "reshape's x");
    op.set(CUDNN_ATTR_OPERATION_RESHAPE_YDESC, tensors_[y], "reshape's y");
    op.finalize("reshape");
    return y;
  }
  Descriptor& operation(cudnnBackendDescriptorType_t type) {
    return operations_.emplace_back(type);
  }

  AttentionShape s_;
  Dims rows_, qkv_strides_, output_strides_, scores_, values_;
  Tensor offsets_of_qkv_, offsets_of_output_, offsets_of_lse_, lengths_, scale_;
  int64_t next_id_ = kFirstVirtual;
  std::vector<Descriptor> tensors_, parts_, operations_;
};

// P = softmax(scale Q K^T), O = P V; lse = max + log sum.
void describe_forward(Graph& g) {
  using T = Graph::Tensor;
  const T q = g.part(kQ), k = g.part(kK, true), v = g.part(kV);
  const T products = g.virtual_scores();
  g.multiply(q, k, products, true, true, false);
  const T scores = g.masked(g.score(CUDNN_POINTWISE_MUL, products, g.scale()));
  const T most = g.virtual_values(), sum = g.virtual_values(), log = g.virtual_values();
  g.reduce(CUDNN_REDUCE_TENSOR_MAX, scores, most);
  const T e = g.score(CUDNN_POINTWISE_EXP, g.score(CUDNN_POINTWISE_SUB, scores, most));
  g.reduce(CUDNN_REDUCE_TENSOR_ADD, e, sum);
  g.pointwise(CUDNN_POINTWISE_LOG, sum, {}, {}, log);
  g.pointwise(CUDNN_POINTWISE_ADD, most, log, {}, g.values(kLse));
  const T p = g.virtual_scores(CUDNN_DATA_BFLOAT16);
  g.pointwise(CUDNN_POINTWISE_DIV, e, sum, {}, p);
  g.multiply(p, v, g.output(kOutput), true, false, true);
}

// D = rowsum(dO O), P = exp(scale Q K^T - lse), dV = P^T dO, dS = scale P (dO V^T - D),
// dK = dS^T Q, dQ = dS K. dQ is a product with stored dS: were it added up while the others are
// made, its order would be left to chance.
void describe_backward(Graph& g) {
  using T = Graph::Tensor;
  const T q = g.part(kQ), k = g.part(kK, true), v = g.part(kV, true);
  const T output = g.output(kOutput), d_output = g.output(kDOutput), lse = g.values(kLse);
  const T along = g.virtual_rows(), sum = g.virtual_values(), row_sums = g.values(kRowSums);
  g.pointwise(CUDNN_POINTWISE_MUL, d_output, output, {}, along);
  g.reduce(CUDNN_REDUCE_TENSOR_ADD, along, sum);
  g.pointwise(CUDNN_POINTWISE_MUL, sum, g.number(kOne), {}, row_sums);

  const T products = g.virtual_scores();
  g.multiply(q, k, products, true, true, false);
  const T scores = g.masked(g.score(CUDNN_POINTWISE_MUL, products, g.scale()));
  const T p = g.score(CUDNN_POINTWISE_EXP, g.score(CUDNN_POINTWISE_SUB, scores, lse));
  g.multiply(g.transposed_scores(p), d_output, g.part(kDV), true, false, true);

  const T dp = g.virtual_scores();
  g.multiply(d_output, v, dp, true, true, false);
  const T centred = g.score(CUDNN_POINTWISE_SUB, dp, row_sums);
  const T ds = g.score(CUDNN_POINTWISE_MUL, g.score(CUDNN_POINTWISE_MUL, centred, p), g.scale());
  g.multiply(g.transposed_scores(ds), q, g.part(kDK), true, false, true);
  g.multiply(ds, g.transposed_part(k), g.part(kDQ), true, false, true);
}

bool is_deterministic(const Descriptor& engine) {
  std::array<cudnnBackendNumericalNote_t, CUDNN_NUMERICAL_NOTE_TYPE_COUNT> notes{};
  const int64_t count = engine.get(CUDNN_ATTR_ENGINE_NUMERICAL_NOTE,
                                   std::span<cudnnBackendNumericalNote_t>(notes), "notes");
  for (int64_t i = 0; i < count; ++i)
    if (notes[static_cast<size_t>(i)] == CUDNN_NUMERICAL_NOTE_NONDETERMINISTIC) return false;
  return true;
}

cudnnBackendDescriptor_t raw(void* descriptor) {
  return static_cast<cudnnBackendDescriptor_t>(descriptor);
}

}  // namespace

const CudnnSearch& find_cudnn() {
  return library().search;
}

CudnnDevice::CudnnDevice() {
  if (!find_cudnn().usable()) throw CudnnRefusal(find_cudnn().problem);
  cudnnHandle_t handle = nullptr;
  check(library().create(&handle), "cudnnCreate");
  handle_ = handle;
}

CudnnDevice::CudnnDevice(const std::string& properties) {
  if (!find_cudnn().usable()) throw CudnnRefusal(find_cudnn().problem);
  Descriptor device(CUDNN_BACKEND_DEVICEPROP_DESCRIPTOR);
  device.set(CUDNN_ATTR_DEVICEPROP_JSON_REPRESENTATION, std::span<const char>(properties),
             "properties of a device");
  device.finalize("properties of a device");
  properties_ = device.release();
}

CudnnDevice::~CudnnDevice() {
  if (handle_) library().destroy(static_cast<cudnnHandle_t>(handle_));
  if (properties_) library().destroy_descriptor(raw(properties_));
}

AttentionPlan::AttentionPlan(const CudnnDevice& device, AttentionDirection direction,
                             const AttentionShape& shape)
    : device_(device), direction_(direction), shape_(shape) {
  // cuDNN divides by zero, or finds a plan whatever the size.
  if (shape.sequences < 1 || shape.longest < 1 || shape.heads < 1 || shape.head_size < 1 ||
      shape.head_size > kWidestHead)
    throw CudnnRefusal(fmt::format("cuDNN is not asked for {} texts of {} tokens, {} heads of {}",
                                   shape.sequences, shape.longest, shape.heads, shape.head_size));
  // NVIDIA's own front end never asks for row sums of packed texts here: a known fault.
  if (direction == AttentionDirection::backward && shape.head_size % 16 != 0)
    throw CudnnRefusal(fmt::format(
        "cuDNN is not asked for gradients of heads of {}: no multiple of 16", shape.head_size));
  const auto handle = static_cast<cudnnHandle_t>(device.handle_);
  Graph graph(shape);
  if (direction == AttentionDirection::forward)
    describe_forward(graph);
  else
    describe_backward(graph);
  const Descriptor operations = graph.finish(handle);

  Descriptor heuristics(CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR);
  heuristics.set(CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, operations, "graph of a search");
  heuristics.set(CUDNN_ATTR_ENGINEHEUR_MODE, CUDNN_HEUR_MODE_A, "mode of a search");
  if (device.properties_)
    heuristics.set(CUDNN_ATTR_ENGINEHEUR_DEVICEPROP, raw(device.properties_), "device of a search");
  heuristics.finalize("search for an engine");
  int64_t found = 0;
  check(library().get_attribute(heuristics.raw(), CUDNN_ATTR_ENGINEHEUR_RESULTS,
                                CUDNN_TYPE_BACKEND_DESCRIPTOR, 0, &found, nullptr),
        "engines");
  std::vector<Descriptor> configurations;
  std::vector<cudnnBackendDescriptor_t> addresses;
  for (int64_t i = 0; i < found; ++i)
    addresses.push_back(configurations.emplace_back(CUDNN_BACKEND_ENGINECFG_DESCRIPTOR).raw());
  found = heuristics.get(CUDNN_ATTR_ENGINEHEUR_RESULTS,
                         std::span<cudnnBackendDescriptor_t>(addresses), "engines");

  std::string problem = "cuDNN: no engine knows this graph";
  for (size_t i = 0; i < static_cast<size_t>(found); ++i) {
    try {
      Descriptor engine(CUDNN_BACKEND_ENGINE_DESCRIPTOR);
      cudnnBackendDescriptor_t address = engine.raw();
      configurations[i].get(CUDNN_ATTR_ENGINECFG_ENGINE,
                            std::span<cudnnBackendDescriptor_t>(&address, 1), "engine");
      if (!is_deterministic(engine)) {
        problem = "cuDNN: the engine gives other bits each time";
        continue;
      }
      Descriptor plan(CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR);
      plan.set(CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, configurations[i], "engine of a plan");
      if (handle) plan.set(CUDNN_ATTR_EXECUTION_PLAN_HANDLE, handle, "handle of a plan");
      if (device.properties_)
        plan.set(CUDNN_ATTR_EXECUTION_PLAN_DEVICEPROP, raw(device.properties_), "device of a plan");
      plan.finalize("plan");
      workspace_ = static_cast<size_t>(
          plan.get<int64_t>(CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE, "work space"));
      engine_ = engine.get<int64_t>(CUDNN_ATTR_ENGINE_GLOBAL_INDEX, "number of an engine");
      plan_ = plan.release();
      return;
    } catch (const CudnnRefusal& refusal) {
      problem = refusal.what();
    }
  }
  throw CudnnRefusal(problem);
}

AttentionPlan::~AttentionPlan() {
  if (plan_) library().destroy_descriptor(raw(plan_));
}

void AttentionPlan::run(const AttentionTensors& t, void* workspace, void* stream) const {
  float scale = t.scale, lowest = std::numeric_limits<float>::lowest(), one = 1;
  std::vector<int64_t> ids;
  std::vector<const void*> addresses;
  const auto give = [&](int64_t id, const void* address) {
    ids.push_back(id);
    addresses.push_back(address);
  };
  // q, k and v, or their gradients, lie beside each other.
  const auto give_parts = [&](const std::array<int64_t, 3>& names, const void* qkv) {
    constexpr int64_t kElement = 2;  // bytes
    for (int64_t i = 0; i < 3; ++i)
      give(names[static_cast<size_t>(i)],
           static_cast<const char*>(qkv) + i * shape_.heads * shape_.head_size * kElement);
  };
  give_parts({kQ, kK, kV}, t.qkv);
  give(kOutput, t.output);
  give(kLse, t.lse);
  give(kScale, &scale);
  give(kLowest, &lowest);
  give(kQkvOffsets, t.qkv_offsets);
  give(kOutputOffsets, t.output_offsets);
  give(kLseOffsets, t.lse_offsets);
  give(kLengths, t.lengths);
  if (direction_ == AttentionDirection::backward) {
    give(kOne, &one);
    give(kDOutput, t.d_output);
    give_parts({kDQ, kDK, kDV}, t.dqkv);
    give(kRowSums, t.row_sums);
  }
  Descriptor pack(CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR);
  pack.set(CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, std::span<const int64_t>(ids), "names of tensors");
  pack.set(CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, std::span<const void* const>(addresses),
           "addresses of tensors");
  pack.set(CUDNN_ATTR_VARIANT_PACK_WORKSPACE, static_cast<const void*>(workspace), "work space");
  pack.finalize("tensors");
  const auto handle = static_cast<cudnnHandle_t>(device_.handle_);
  check(library().set_stream(handle, static_cast<cudaStream_t>(stream)), "cudnnSetStream");
  check(library().execute(handle, raw(plan_), pack.raw()), "cudnnBackendExecute");
}

}  // namespace amur::cuda
