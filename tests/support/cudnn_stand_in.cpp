// Passes for cuDNN's graph interface: one engine, which computes any graph on the CPU, operation by
// operation, as cuDNN's documentation says what each does. It shows what our graphs mean, and
// nothing about cuDNN's kernels. What is not there, behind the end of a text, is read as not a
// number.
//
// AMUR_STAND_IN_NOTES=1: its engine says of itself that it is not deterministic.
#include "tests/support/cudnn_stand_in.h"

#include <cudnn_graph.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <map>
#include <memory>
#include <stdexcept>
#include <vector>

#include "src/core/dtype.h"

namespace {

using amur::bf16;
using Dims = std::array<int64_t, 4>;

struct Thing {
  cudnnBackendDescriptorType_t type;
  bool finished = false;
  std::map<int, std::vector<char>> values;
  std::map<int, std::vector<std::shared_ptr<Thing>>> links;

  template <class T>
  T value(cudnnBackendAttributeName_t name, T otherwise) const {
    const auto found = values.find(name);
    if (found == values.end()) return otherwise;
    T v;
    std::memcpy(&v, found->second.data(), sizeof v);
    return v;
  }
  template <class T>
  std::vector<T> list(cudnnBackendAttributeName_t name) const {
    const auto& bytes = values.at(name);
    std::vector<T> v(bytes.size() / sizeof(T));
    std::memcpy(v.data(), bytes.data(), bytes.size());
    return v;
  }
  bool has(cudnnBackendAttributeName_t name) const { return links.contains(name); }
  const Thing& link(cudnnBackendAttributeName_t name) const { return *links.at(name).at(0); }
};
using Handle = std::shared_ptr<Thing>;

Handle& handle_of(cudnnBackendDescriptor_t descriptor) {
  return *static_cast<Handle*>(descriptor);
}

size_t size_of(cudnnBackendAttributeType_t type) {
  switch (type) {
    case CUDNN_TYPE_CHAR:
    case CUDNN_TYPE_BOOLEAN:
      return 1;
    case CUDNN_TYPE_INT64:
    case CUDNN_TYPE_VOID_PTR:
    case CUDNN_TYPE_HANDLE:
      return 8;
    default:
      return 4;
  }
}

void require(bool condition, const char* what) {
  if (!condition) throw std::runtime_error(what);
}

// A tensor in full.
struct Values {
  Dims dims{};
  std::vector<float> v;

  float at(Dims i) const {  // of size 1: the same everywhere
    int64_t place = 0;
    for (size_t k = 0; k < 4; ++k) place = place * dims[k] + (dims[k] == 1 ? 0 : i[k]);
    return v[static_cast<size_t>(place)];
  }
};

template <class F>
void for_each(const Dims& dims, F&& f) {
  Dims i{};
  for (i[0] = 0; i[0] < dims[0]; ++i[0])
    for (i[1] = 0; i[1] < dims[1]; ++i[1])
      for (i[2] = 0; i[2] < dims[2]; ++i[2])
        for (i[3] = 0; i[3] < dims[3]; ++i[3]) f(i);
}

struct Shape {
  int64_t id;
  Dims dims, strides;
  cudnnDataType_t type;
  bool is_virtual, by_value;

  explicit Shape(const Thing& t)
      : id(t.value<int64_t>(CUDNN_ATTR_TENSOR_UNIQUE_ID, 0)),
        type(t.value(CUDNN_ATTR_TENSOR_DATA_TYPE, CUDNN_DATA_FLOAT)),
        is_virtual(t.value(CUDNN_ATTR_TENSOR_IS_VIRTUAL, false)),
        by_value(t.value(CUDNN_ATTR_TENSOR_IS_BY_VALUE, false)) {
    const auto d = t.list<int64_t>(CUDNN_ATTR_TENSOR_DIMENSIONS);
    const auto s = t.list<int64_t>(CUDNN_ATTR_TENSOR_STRIDES);
    require(d.size() == 4 && s.size() == 4, "a tensor has not four dimensions");
    std::copy(d.begin(), d.end(), dims.begin());
    std::copy(s.begin(), s.end(), strides.begin());
  }
};

CudnnStandInMood mood = CudnnStandInMood::honest;
void (*give_to_queue)(const char* name, std::function<void()> work) = nullptr;

class Run {
 public:
  // What is given by value is read now.
  Run(const Thing& graph, const Thing& pack)
      : operations_(graph.links.at(CUDNN_ATTR_OPERATIONGRAPH_OPS)),
        too_much_(mood == CudnnStandInMood::errs ? 1.1f : 1.0f) {
    const auto ids = pack.list<int64_t>(CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS);
    const auto addresses = pack.list<char*>(CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS);
    require(ids.size() == addresses.size(), "names and addresses");
    for (size_t i = 0; i < ids.size(); ++i) given_[ids[i]] = addresses[i];
    for (const Handle& operation : operations_)
      for (const auto& [name, tensors] : operation->links)
        for (const Handle& tensor : tensors)
          if (tensor->value(CUDNN_ATTR_TENSOR_IS_BY_VALUE, false)) {
            const Shape shape(*tensor);
            std::memcpy(&values_[shape.id], given_.at(shape.id), sizeof(float));
          }
  }

  void operator()() {
    for (const Handle& operation : operations_) compute(*operation);
  }

 private:
  void compute(const Thing& op) {
    switch (op.type) {
      case CUDNN_BACKEND_OPERATION_MATMUL_DESCRIPTOR:
        return multiply(op);
      case CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR:
        return pointwise(op);
      case CUDNN_BACKEND_OPERATION_REDUCTION_DESCRIPTOR:
        return reduce(op);
      case CUDNN_BACKEND_OPERATION_RESHAPE_DESCRIPTOR:
        return transpose(op);
      default:
        throw std::runtime_error("an operation of another kind");
    }
  }

  // [b, h, m, k] [b, h, k, n]; what lies beyond an override is left out, and 0 in the result.
  void multiply(const Thing& op) {
    const Values a = read(op.link(CUDNN_ATTR_OPERATION_MATMUL_ADESC));
    const Values b = read(op.link(CUDNN_ATTR_OPERATION_MATMUL_BDESC));
    const Dims dims{a.dims[0], a.dims[1], a.dims[2], b.dims[3]};
    require(a.dims[3] == b.dims[2] && a.dims[0] == b.dims[0] && a.dims[1] == b.dims[1],
            "factors of other sizes");
    const auto limit = [&](cudnnBackendAttributeName_t name, int64_t sequence, int64_t size) {
      if (!op.has(name)) return size;
      return static_cast<int64_t>(read(op.link(name)).at({sequence, 0, 0, 0}));
    };
    Values c{dims, std::vector<float>(static_cast<size_t>(dims[0] * dims[1] * dims[2] * dims[3]))};
    for (int64_t s = 0; s < dims[0]; ++s) {
      const int64_t m = limit(CUDNN_ATTR_OPERATION_MATMUL_GEMM_M_OVERRIDE_DESC, s, dims[2]);
      const int64_t n = limit(CUDNN_ATTR_OPERATION_MATMUL_GEMM_N_OVERRIDE_DESC, s, dims[3]);
      const int64_t k = limit(CUDNN_ATTR_OPERATION_MATMUL_GEMM_K_OVERRIDE_DESC, s, a.dims[3]);
      for (int64_t h = 0; h < dims[1]; ++h)
        for (int64_t i = 0; i < m; ++i)
          for (int64_t j = 0; j < n; ++j) {
            float sum = 0;
            for (int64_t l = 0; l < k; ++l) sum += a.at({s, h, i, l}) * b.at({s, h, l, j});
            c.v[static_cast<size_t>(((s * dims[1] + h) * dims[2] + i) * dims[3] + j)] = sum;
          }
    }
    write(op.link(CUDNN_ATTR_OPERATION_MATMUL_CDESC), std::move(c));
  }

  void pointwise(const Thing& op) {
    const Thing& how = op.link(CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR);
    const auto mode = how.value(CUDNN_ATTR_POINTWISE_MODE, CUDNN_POINTWISE_IDENTITY);
    const auto axis = static_cast<size_t>(how.value<int64_t>(CUDNN_ATTR_POINTWISE_AXIS, 0));
    const Values none{{1, 1, 1, 1}, {0}};
    const auto input = [&](cudnnBackendAttributeName_t name) {
      return op.has(name) ? read(op.link(name)) : none;
    };
    const Values x = input(CUDNN_ATTR_OPERATION_POINTWISE_XDESC);
    const Values b = input(CUDNN_ATTR_OPERATION_POINTWISE_BDESC);
    const Values t = input(CUDNN_ATTR_OPERATION_POINTWISE_TDESC);
    Values y{Shape(op.link(CUDNN_ATTR_OPERATION_POINTWISE_YDESC)).dims, {}};
    for_each(y.dims, [&](const Dims& i) {
      const float u = x.at(i), w = b.at(i);
      switch (mode) {
        case CUDNN_POINTWISE_ADD:
          return y.v.push_back(u + w);
        case CUDNN_POINTWISE_SUB:
          return y.v.push_back(u - w);
        case CUDNN_POINTWISE_MUL:
          return y.v.push_back(u * w);
        case CUDNN_POINTWISE_DIV:
          return y.v.push_back(u / w);
        case CUDNN_POINTWISE_EXP:
          return y.v.push_back(std::exp(u));
        case CUDNN_POINTWISE_LOG:
          return y.v.push_back(std::log(u));
        case CUDNN_POINTWISE_GEN_INDEX:
          return y.v.push_back(static_cast<float>(i[axis]));
        case CUDNN_POINTWISE_CMP_LT:
          return y.v.push_back(u < w ? 1 : 0);
        case CUDNN_POINTWISE_LOGICAL_AND:
          return y.v.push_back(u != 0 && w != 0 ? 1 : 0);
        case CUDNN_POINTWISE_BINARY_SELECT:
          return y.v.push_back(t.at(i) != 0 ? u : w);
        default:
          throw std::runtime_error("a mode of another kind");
      }
    });
    write(op.link(CUDNN_ATTR_OPERATION_POINTWISE_YDESC), std::move(y));
  }

  // Over the last dimension.
  void reduce(const Thing& op) {
    const auto mode = op.link(CUDNN_ATTR_OPERATION_REDUCTION_DESC)
                          .value(CUDNN_ATTR_REDUCTION_OPERATOR, CUDNN_REDUCE_TENSOR_ADD);
    const Values x = read(op.link(CUDNN_ATTR_OPERATION_REDUCTION_XDESC));
    Values y{Shape(op.link(CUDNN_ATTR_OPERATION_REDUCTION_YDESC)).dims, {}};
    require(y.dims == Dims{x.dims[0], x.dims[1], x.dims[2], 1}, "a reduction of other sizes");
    for_each(y.dims, [&](Dims i) {
      float result = x.at(i);
      for (i[3] = 1; i[3] < x.dims[3]; ++i[3])
        result = mode == CUDNN_REDUCE_TENSOR_MAX ? std::max(result, x.at(i)) : result + x.at(i);
      y.v.push_back(result);
    });
    write(op.link(CUDNN_ATTR_OPERATION_REDUCTION_YDESC), std::move(y));
  }

  // A reshape that leaves every element where it is in memory and changes the last two dimensions.
  void transpose(const Thing& op) {
    const Shape from(op.link(CUDNN_ATTR_OPERATION_RESHAPE_XDESC));
    const Shape to(op.link(CUDNN_ATTR_OPERATION_RESHAPE_YDESC));
    const auto swapped = [](Dims d) { return Dims{d[0], d[1], d[3], d[2]}; };
    require(to.dims == swapped(from.dims) && to.strides == swapped(from.strides),
            "a reshape of another kind");
    const Values x = read(op.link(CUDNN_ATTR_OPERATION_RESHAPE_XDESC));
    Values y{to.dims, {}};
    for_each(y.dims, [&](const Dims& i) { y.v.push_back(x.at(swapped(i))); });
    write(op.link(CUDNN_ATTR_OPERATION_RESHAPE_YDESC), std::move(y));
  }

  // Calls f(index, address or null) for every element of a tensor in memory.
  template <class F>
  void visit(const Thing& tensor, const Shape& shape, F&& f) {
    require(given_.contains(shape.id), "a tensor without an address");
    char* memory = shape.by_value ? reinterpret_cast<char*>(&values_.at(shape.id))
                                  : given_.at(shape.id);
    const int64_t size = shape.type == CUDNN_DATA_BFLOAT16 ? 2
                         : shape.type == CUDNN_DATA_INT64  ? 8
                                                           : 4;
    if (!tensor.has(CUDNN_ATTR_TENSOR_RAGGED_OFFSET_DESC))
      return for_each(shape.dims, [&](const Dims& i) {
        int64_t place = 0;
        for (size_t k = 0; k < 4; ++k) place += i[k] * shape.strides[k];
        f(i, memory + place * size);
      });
    const Thing& of = tensor.link(CUDNN_ATTR_TENSOR_RAGGED_OFFSET_DESC);
    const Shape offsets(of);
    require(offsets.type == CUDNN_DATA_INT64 && offsets.dims[0] == shape.dims[0] + 1, "offsets");
    const auto* begin = reinterpret_cast<const int64_t*>(given_.at(offsets.id));
    // The dimension of places: the one whose steps are the rows of all heads.
    const size_t places = shape.dims[3] > 1 && shape.strides[3] > shape.strides[2] ? 3 : 2;
    for_each(shape.dims, [&](const Dims& i) {
      const auto s = static_cast<size_t>(i[0]);
      const bool there = i[places] * shape.strides[places] < begin[s + 1] - begin[s];
      int64_t place = begin[s];
      for (size_t k = 1; k < 4; ++k) place += i[k] * shape.strides[k];
      f(i, there ? memory + place * size : nullptr);
    });
  }

  Values read(const Thing& tensor) {
    const Shape shape(tensor);
    if (shape.is_virtual) {
      require(made_.contains(shape.id), "a virtual tensor that nothing computes");
      return made_.at(shape.id);
    }
    Values x{shape.dims, {}};
    visit(tensor, shape, [&](const Dims&, const char* from) {
      float value = std::numeric_limits<float>::quiet_NaN();
      if (from && shape.type == CUDNN_DATA_BFLOAT16) {
        bf16 small;
        std::memcpy(&small, from, sizeof small);
        value = static_cast<float>(small);
      } else if (from && shape.type == CUDNN_DATA_INT32) {
        int32_t whole;
        std::memcpy(&whole, from, sizeof whole);
        value = static_cast<float>(whole);
      } else if (from) {
        std::memcpy(&value, from, sizeof value);
      }
      x.v.push_back(value);
    });
    return x;
  }

  void write(const Thing& tensor, Values x) {
    const Shape shape(tensor);
    require(shape.dims == x.dims, "a result of another size");
    if (shape.type == CUDNN_DATA_BFLOAT16)
      for (float& value : x.v) value = static_cast<float>(bf16(value));
    if (shape.is_virtual) {
      made_[shape.id] = std::move(x);
      return;
    }
    visit(tensor, shape, [&](const Dims& i, char* to) {
      if (!to) return;
      const float value = too_much_ * x.at(i);
      const bf16 small(value);
      if (shape.type == CUDNN_DATA_BFLOAT16)
        std::memcpy(to, &small, sizeof small);
      else
        std::memcpy(to, &value, sizeof value);
    });
  }

  const std::vector<Handle> operations_;
  const float too_much_;
  std::map<int64_t, char*> given_;
  std::map<int64_t, float> values_;
  std::map<int64_t, Values> made_;
};

char last_error[256] = "";

}  // namespace

extern "C" {

__attribute__((visibility("default"))) void cudnn_stand_in_mood(CudnnStandInMood now) {
  mood = now;
}
__attribute__((visibility("default"))) void cudnn_stand_in_queue(
    void (*enqueue)(const char* name, std::function<void()> work)) {
  give_to_queue = enqueue;
}

size_t cudnnGetVersion() {
  return CUDNN_VERSION;
}
const char* cudnnGetErrorString(cudnnStatus_t) {
  return "an error of the stand-in";
}
void cudnnGetLastErrorString(char* message, size_t most) {
  std::strncpy(message, last_error, most - 1);
}
cudnnStatus_t cudnnCreate(cudnnHandle_t* handle) {
  static int nothing = 0;
  *handle = reinterpret_cast<cudnnHandle_t>(&nothing);
  return CUDNN_STATUS_SUCCESS;
}
cudnnStatus_t cudnnDestroy(cudnnHandle_t) {
  return CUDNN_STATUS_SUCCESS;
}
cudnnStatus_t cudnnSetStream(cudnnHandle_t, cudaStream_t) {
  return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnBackendCreateDescriptor(cudnnBackendDescriptorType_t type,
                                           cudnnBackendDescriptor_t* descriptor) {
  auto thing = std::make_shared<Thing>();
  thing->type = type;
  *descriptor = new Handle(std::move(thing));
  return CUDNN_STATUS_SUCCESS;
}
cudnnStatus_t cudnnBackendDestroyDescriptor(cudnnBackendDescriptor_t descriptor) {
  delete static_cast<Handle*>(descriptor);
  return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnBackendSetAttribute(cudnnBackendDescriptor_t descriptor,
                                       cudnnBackendAttributeName_t name,
                                       cudnnBackendAttributeType_t type, int64_t count,
                                       const void* values) {
  Thing& thing = *handle_of(descriptor);
  if (thing.finished) return CUDNN_STATUS_BAD_PARAM;
  if (type == CUDNN_TYPE_BACKEND_DESCRIPTOR) {
    for (int64_t i = 0; i < count; ++i) {
      const Handle& other = handle_of(static_cast<const cudnnBackendDescriptor_t*>(values)[i]);
      if (!other->finished) return CUDNN_STATUS_BAD_PARAM;
      thing.links[name].push_back(other);
    }
  } else {
    const auto* bytes = static_cast<const char*>(values);
    thing.values[name].assign(bytes, bytes + static_cast<size_t>(count) * size_of(type));
  }
  return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnBackendFinalize(cudnnBackendDescriptor_t descriptor) {
  handle_of(descriptor)->finished = true;
  return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnBackendGetAttribute(cudnnBackendDescriptor_t descriptor,
                                       cudnnBackendAttributeName_t name,
                                       cudnnBackendAttributeType_t, int64_t most, int64_t* count,
                                       void* values) {
  const Handle& thing = handle_of(descriptor);
  *count = 1;
  switch (name) {
    case CUDNN_ATTR_ENGINEHEUR_RESULTS:
    case CUDNN_ATTR_ENGINECFG_ENGINE:
      if (most > 0) {
        Thing& result = *handle_of(static_cast<cudnnBackendDescriptor_t*>(values)[0]);
        result.links[CUDNN_ATTR_ENGINE_OPERATION_GRAPH] = {
            thing->type == CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR
                ? thing->links.at(CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH).at(0)
                : thing->links.at(CUDNN_ATTR_ENGINE_OPERATION_GRAPH).at(0)};
        result.finished = true;
      }
      return CUDNN_STATUS_SUCCESS;
    case CUDNN_ATTR_ENGINE_NUMERICAL_NOTE:
      *count = std::getenv("AMUR_STAND_IN_NOTES") ? 1 : 0;
      if (*count == 1)
        *static_cast<cudnnBackendNumericalNote_t*>(values) = CUDNN_NUMERICAL_NOTE_NONDETERMINISTIC;
      return CUDNN_STATUS_SUCCESS;
    case CUDNN_ATTR_ENGINE_GLOBAL_INDEX:
    case CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE:
      *static_cast<int64_t*>(values) = 0;
      return CUDNN_STATUS_SUCCESS;
    default:
      return CUDNN_STATUS_NOT_SUPPORTED;
  }
}

cudnnStatus_t cudnnBackendExecute(cudnnHandle_t, cudnnBackendDescriptor_t plan,
                                  cudnnBackendDescriptor_t pack) {
  try {
    require(mood != CudnnStandInMood::refuses, "the stand-in was told to refuse");
    const Thing& configuration = handle_of(plan)->link(CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG);
    Run run(configuration.link(CUDNN_ATTR_ENGINE_OPERATION_GRAPH), *handle_of(pack));
    if (give_to_queue)
      give_to_queue("cuDNN's stand-in", std::move(run));
    else
      run();
    return CUDNN_STATUS_SUCCESS;
  } catch (const std::exception& error) {
    std::strncpy(last_error, error.what(), sizeof last_error - 1);
    return CUDNN_STATUS_EXECUTION_FAILED;
  }
}

}  // extern "C"
