#include "src/train/checkpoint/checkpoint_format.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <set>

#include "kernels/elementwise.h"
#include "src/core/hash.h"

namespace amur {
namespace {

constexpr uint64_t kIndexFactor = 0x9e3779b97f4a7c15u;
constexpr int64_t kReadBlockBytes = int64_t{16} << 20;

template <class Bits>
uint64_t sum_of_run(const std::byte* data, int64_t count, int64_t index) {
  uint64_t sum = 0;
  for (int64_t i = 0; i < count; ++i) {
    Bits bits;
    std::memcpy(&bits, data + static_cast<size_t>(i) * sizeof(Bits), sizeof(Bits));
    sum += mix64(static_cast<uint64_t>(index + i + 1) * kIndexFactor + bits);
  }
  return sum;
}

uint64_t sum_of_run(const std::byte* data, size_t element, int64_t count, int64_t index) {
  switch (element) {
    case 1:
      return sum_of_run<uint8_t>(data, count, index);
    case 2:
      return sum_of_run<uint16_t>(data, count, index);
    case 4:
      return sum_of_run<uint32_t>(data, count, index);
    case 8:
      return sum_of_run<uint64_t>(data, count, index);
    default:
      throw InternalError(fmt::format("elements of {} bytes", element));
  }
}

std::vector<StoredTensor> tensors_without_values(ParameterSet& parameters,
                                                 std::span<const OptimizerSlot> slots,
                                                 const std::string& optimizer, int tp_rank,
                                                 int tp_size) {
  const auto check_name = [](const std::string& name) {
    AMUR_CHECK(!name.empty() && name.find('/') == std::string::npos, "'{}' as a name in a file",
               name);
  };
  std::vector<StoredTensor> tensors;
  const auto add = [&](std::string path, const Parameter& p) {
    check_name(p.name);
    tensors.push_back({std::move(path), &p, p.global_shape(), slab_of(p, tp_rank, tp_size),
                       TensorView(), p.sharding.axis < 0, true});
  };
  for (const Parameter& p : parameters) add("/model/" + p.name, p);
  for (const OptimizerSlot& slot : slots) {
    const Parameter& p = *slot.parameter;
    check_name(slot.slot);
    check_name(optimizer);
    add(fmt::format("/optimizer/{}/{}/{}", optimizer, slot.slot, p.name), p);
    if (!slot.per_row) continue;
    StoredTensor& t = tensors.back();
    AMUR_CHECK(t.global.dims() > 0, "{}: one value a row of a scalar", t.path);
    t.global = Shape{t.global[0]};
    t.slab = {Shape{t.slab.first[0]}, Shape{t.slab.count[0]}};
    t.replicated = p.sharding.axis != 0;
  }
  for (StoredTensor& t : tensors) t.counted = !t.replicated || tp_rank == 0;
  return tensors;
}

bool convertible(DType from, DType to) {
  const auto real = [](DType t) { return t == DType::f32 || t == DType::bf16 || t == DType::f64; };
  return from == to || (real(from) && real(to));
}

}  // namespace

uint64_t checksum_of(ConstTensorView block, const Shape& first, const Shape& global) {
  const Shape& count = block.shape();
  if (block.elements() == 0) return 0;
  Tensor staging;
  const auto* data = static_cast<const std::byte*>(on_host(block, staging).raw());
  const size_t element = size_of(block.dtype());
  // Axes behind `inner` are whole, so that runs of elements of the block are runs of the tensor.
  int inner = count.dims() - 1;
  while (inner > 0 && count[inner] == global[inner]) --inner;
  if (inner < 0) return sum_of_run(data, element, 1, 0);
  const int64_t run = count.product(inner, count.dims());
  std::array<int64_t, Shape::kMaxDims> at{};
  uint64_t sum = 0;
  for (int64_t done = 0; done < block.elements(); done += run) {
    int64_t index = 0;
    for (int d = 0; d < count.dims(); ++d)
      index = index * global[d] + first[d] + at[static_cast<size_t>(d)];
    sum += sum_of_run(data + static_cast<size_t>(done) * element, element, run, index);
    for (int d = inner - 1; d >= 0; --d) {
      if (++at[static_cast<size_t>(d)] < count[d]) break;
      at[static_cast<size_t>(d)] = 0;
    }
  }
  return sum;
}

uint64_t checksum_of(std::span<const std::byte> bytes) {
  return sum_of_run<uint8_t>(bytes.data(), static_cast<int64_t>(bytes.size()), 0);
}

std::vector<StoredTensor> stored_tensors(ParameterSet& parameters,
                                         std::span<const OptimizerSlot> slots,
                                         const std::string& optimizer, int tp_rank, int tp_size) {
  std::vector<StoredTensor> tensors =
      tensors_without_values(parameters, slots, optimizer, tp_rank, tp_size);
  for (size_t i = 0; i < tensors.size(); ++i) {
    StoredTensor& t = tensors[i];
    t.value =
        i < parameters.size() ? parameters[i].value.view() : slots[i - parameters.size()].value;
    AMUR_CHECK(t.value.shape() == t.slab.count, "{} is {}, its slab {}", t.path,
               t.value.shape().text(), t.slab.count.text());
  }
  return tensors;
}

std::vector<StoredTensor> outlined_tensors(ParameterSet& parameters,
                                           std::span<const OptimizerSlot> slots,
                                           const std::string& optimizer, DType dtype) {
  std::vector<StoredTensor> tensors = tensors_without_values(parameters, slots, optimizer, 0, 1);
  for (size_t i = 0; i < tensors.size(); ++i) {
    const bool per_row = i >= parameters.size() && slots[i - parameters.size()].per_row;
    tensors[i].value = TensorView(nullptr, tensors[i].slab.count, per_row ? DType::i64 : dtype);
  }
  return tensors;
}

bool belongs_to_loss(const std::string& path) {
  return path.starts_with("/model/loss.");
}

void require_tensors(const Hdf5File& file, const std::vector<StoredTensor>& tensors) {
  std::string text;
  std::set<std::string> asked;
  bool loss = false;
  for (const StoredTensor& t : tensors) {
    asked.insert(t.path);
    loss = loss || belongs_to_loss(t.path);
    if (!file.exists(t.path)) {
      text += fmt::format("\n  missing: {} {}", t.path, t.global.text());
      continue;
    }
    const Shape stored = file.info(t.path).shape;
    if (stored != t.global)
      text += fmt::format("\n  shape: {} is {} in the file, {} here", t.path, stored.text(),
                          t.global.text());
  }
  for (const std::string& name : file.children("/model")) {
    const std::string path = "/model/" + name;
    if (!asked.contains(path) && (loss || !belongs_to_loss(path)))
      text += fmt::format("\n  unexpected: {} {}", path, file.info(path).shape.text());
  }
  if (!text.empty()) throw IoError("checkpoint '{}' is of another model:{}", file.path(), text);
}

RowRange rows_of(const StoredTensor& tensor, int dp_rank, int dp_size) {
  const int64_t first = tensor.rows() * dp_rank / dp_size;
  return {first, tensor.rows() * (dp_rank + 1) / dp_size - first};
}

Slab slab_of_rows(const StoredTensor& tensor, RowRange rows) {
  Slab slab = tensor.slab;
  if (slab.count.dims() == 0) {
    // An empty share of a scalar is told apart by its own shape.
    if (rows.count == 0) slab.count = Shape{0};
    return slab;
  }
  slab.first = slab.first.with(0, slab.first[0] + rows.first);
  slab.count = slab.count.with(0, rows.count);
  return slab;
}

TensorView view_of_rows(const StoredTensor& tensor, RowRange rows) {
  const Shape shape = slab_of_rows(tensor, rows).count;
  const TensorView flat = tensor.value.reshape(
      Shape{tensor.rows(), tensor.value.elements() / std::max<int64_t>(tensor.rows(), 1)});
  return flat.slice(rows.first, rows.count).reshape(shape);
}

uint64_t read_rows(const Hdf5File& file, const StoredTensor& tensor, RowRange rows) {
  const DType stored = file.info(tensor.path).dtype;
  const DType wanted = tensor.value.dtype();
  if (!convertible(stored, wanted))
    throw IoError("'{}': {} holds {}, wanted {}", file.path(), tensor.path, name_of(stored),
                  name_of(wanted));
  const bool direct = stored == wanted && tensor.value.device() == Device::cpu();
  const int64_t row_bytes = tensor.value.elements() / std::max<int64_t>(tensor.rows(), 1) *
                            static_cast<int64_t>(size_of(stored));
  const int64_t step = std::max<int64_t>(kReadBlockBytes / std::max<int64_t>(row_bytes, 1), 1);
  uint64_t sum = 0;
  for (int64_t row = 0; row < rows.count; row += step) {
    const RowRange block{rows.first + row, std::min(step, rows.count - row)};
    const Slab slab = slab_of_rows(tensor, block);
    Tensor staging;
    if (!direct) staging = Tensor(slab.count, stored);
    const TensorView host = direct ? view_of_rows(tensor, block) : staging.view();
    file.read(tensor.path, slab.first, host);
    sum += checksum_of(host, slab.first, tensor.global);
    if (direct) continue;
    const TensorView target = view_of_rows(tensor, block);
    if (stored == wanted) {
      copy(target, host);
    } else {
      Tensor converted(slab.count, wanted);
      cast(host, converted);
      copy(target, converted);
    }
  }
  return sum;
}

uint64_t checksum_in_file(const Hdf5File& file, const StoredTensor& tensor, const Slab& part) {
  const DType stored = file.info(tensor.path).dtype;
  uint64_t sum = 0;
  for (Slab box : boxes_of(part.count, kReadBlockBytes / static_cast<int64_t>(size_of(stored)))) {
    for (int d = 0; d < box.first.dims(); ++d)
      box.first = box.first.with(d, box.first[d] + part.first[d]);
    Tensor values(box.count, stored);
    file.read(tensor.path, box.first, values);
    sum += checksum_of(values, box.first, tensor.global);
  }
  return sum;
}

void write_tensor_attributes(Hdf5File& file, const StoredTensor& tensor, uint64_t checksum) {
  const Parameter& p = *tensor.parameter;
  std::vector<std::string> roles;
  for (int i = 0; i < tensor.global.dims(); ++i)
    roles.emplace_back(name_of(p.axes[static_cast<size_t>(i)].role));
  file.set_attribute(tensor.path, "axes", roles);
  file.set_attribute(tensor.path, kChecksumAttribute, checksum);
  if (!tensor.path.starts_with("/model/")) return;
  file.set_attribute(tensor.path, "kind", std::string(name_of(p.kind)));
  file.set_attribute(tensor.path, "learning_rate_multiplier", p.learning_rate_multiplier);
  file.set_attribute(tensor.path, "decay_multiplier", p.decay_multiplier);
  file.set_attribute(tensor.path, "rms_floor", p.rms_floor);
  file.set_attribute(tensor.path, "frozen", int64_t{p.frozen});
}

void read_parameter_attributes(const Hdf5File& file, const std::string& path,
                               Parameter& parameter) {
  parameter.learning_rate_multiplier = file.attribute_as<double>(path, "learning_rate_multiplier");
  parameter.decay_multiplier = file.attribute_as<double>(path, "decay_multiplier");
  parameter.rms_floor = file.attribute_as<double>(path, "rms_floor");
  parameter.frozen = file.attribute_as<int64_t>(path, "frozen") != 0;
}

std::string damage_text(const std::string& path, const std::string& object, uint64_t stored,
                        uint64_t found) {
  return fmt::format(
      "'{}' is damaged: {} has check sum {:016x} instead of {:016x}. Use an older checkpoint", path,
      object, found, stored);
}

}  // namespace amur
