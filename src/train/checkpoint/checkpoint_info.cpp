// The parts of a checkpoint file that are not tensors.
#include <algorithm>

#include "src/train/checkpoint/checkpoint_format.h"

namespace amur {
namespace {

std::span<const std::byte> bytes_of(const std::string& text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}

void seal_text(Hdf5File& file, const std::string& dataset) {
  file.set_attribute(dataset, kChecksumAttribute, checksum_of(file.read_text_bytes(dataset)));
}

void write_text(Hdf5File& file, const std::string& dataset, const std::string& text) {
  file.write_text(dataset, text);
  seal_text(file, dataset);
}

void check_sum(const Hdf5File& file, const std::string& dataset, uint64_t found) {
  const auto stored = file.attribute_as<uint64_t>(dataset, kChecksumAttribute);
  if (stored != found) throw IoError("{}", damage_text(file.path(), dataset, stored, found));
}

std::vector<std::string> read_texts(const Hdf5File& file, const std::string& dataset) {
  check_sum(file, dataset, checksum_of(file.read_text_bytes(dataset)));
  return file.read_texts(dataset);
}

std::string read_text(const Hdf5File& file, const std::string& dataset) {
  std::vector<std::string> texts = read_texts(file, dataset);
  if (texts.size() != 1) throw IoError("'{}': {} is not one text", file.path(), dataset);
  return std::move(texts[0]);
}

// One-dimensional data, written whole by one rank.
void write_vector(Hdf5File& file, const std::string& dataset, ConstTensorView values) {
  file.create_dataset(dataset, values.shape(), values.dtype());
  file.write(dataset, Shape{0}, values);
  file.set_attribute(dataset, kChecksumAttribute, checksum_of(values, Shape{0}, values.shape()));
}

Tensor read_vector(const Hdf5File& file, const std::string& dataset, DType dtype) {
  const DatasetInfo what = file.info(dataset);
  if (what.string_length != 0 || what.dtype != dtype || what.shape.dims() != 1 ||
      what.stored_bytes != static_cast<size_t>(what.shape.elements()) * size_of(dtype))
    throw IoError("'{}': {} is not a list of {}", file.path(), dataset, name_of(dtype));
  Tensor values(what.shape, dtype);
  file.read(dataset, Shape{0}, values);
  check_sum(file, dataset, checksum_of(values, Shape{0}, what.shape));
  return values;
}

template <class T>
void write_map(Hdf5File& file, const std::string& group, const std::map<std::string, T>& map) {
  file.create_group(group);
  for (const auto& [name, value] : map) file.set_attribute(group, name, value);
}

template <class T>
std::map<std::string, T> read_map(const Hdf5File& file, const std::string& group) {
  std::map<std::string, T> map;
  for (const auto& entry : file.attributes(group))
    map[entry.first] = file.attribute_as<T>(group, entry.first);
  return map;
}

MetricsHistory read_metrics(const Hdf5File& file) {
  MetricsHistory metrics;
  const std::vector<std::string> names = file.children("/metrics");
  metrics.columns.resize(names.size());
  metrics.values.resize(names.size());
  std::vector<bool> filled(names.size());
  for (const std::string& name : names) {
    const std::string dataset = "/metrics/" + name;
    const auto position = static_cast<size_t>(file.attribute_as<int64_t>(dataset, "column"));
    if (position >= names.size() || filled[position])
      throw IoError("'{}': {} has no place among {} columns", file.path(), dataset, names.size());
    filled[position] = true;
    const Tensor values = read_vector(file, dataset, DType::f64);
    metrics.columns[position] = name;
    metrics.values[position].assign(values.as<double>(), values.as<double>() + values.elements());
  }
  for (const std::vector<double>& column : metrics.values)
    if (static_cast<int64_t>(column.size()) != metrics.rows())
      throw IoError("'{}': the columns of /metrics differ in length", file.path());
  return metrics;
}

// Bytes by name, a data set each.
void write_files(Hdf5File& file, const std::string& group,
                 const std::map<std::string, std::string>& files) {
  file.create_group(group);
  for (const auto& [name, content] : files) {
    AMUR_CHECK(!name.empty() && name.find('/') == std::string::npos, "'{}' in {}", name, group);
    const auto bytes = bytes_of(content);
    write_vector(
        file, group + "/" + name,
        ConstTensorView(bytes.data(), Shape{static_cast<int64_t>(bytes.size())}, DType::u8));
  }
}

std::map<std::string, std::string> read_files(const Hdf5File& file, const std::string& group) {
  std::map<std::string, std::string> files;
  for (const std::string& name : file.children(group)) {
    const Tensor content = read_vector(file, group + "/" + name, DType::u8);
    const auto* bytes = reinterpret_cast<const char*>(content.as<uint8_t>());
    files[name].assign(bytes, static_cast<size_t>(content.elements()));
  }
  return files;
}

}  // namespace

void write_lineage(Hdf5File& file, const std::vector<std::string>& lineage) {
  file.write_texts("/lineage", lineage);
  seal_text(file, "/lineage");
}

void write_info(Hdf5File& file, const CheckpointInfo& info) {
  file.set_attribute("/", "format", std::string(kCheckpointFormat));
  file.set_attribute("/", "version", kCheckpointVersion);
  file.set_attribute("/", "complete", int64_t{0});
  file.set_attribute("/", "written_by", info.written_by);
  file.set_attribute("/", "world_size", int64_t{info.world_size});
  file.set_attribute("/", "dp", int64_t{info.dp});
  file.set_attribute("/", "tp", int64_t{info.tp});

  file.create_group("/state");
  file.set_attribute("/state", "step", info.step);
  file.set_attribute("/state", "epoch", info.position.epoch);
  file.set_attribute("/state", "sample", info.position.sample);
  file.set_attribute("/state", "samples_seen", info.position.samples_seen);
  file.set_attribute("/state", "seed", info.seed);
  file.set_attribute("/state", "optimizer", info.optimizer);

  write_text(file, "/config", info.config_yaml);
  file.create_group("/data");
  write_text(file, "/data/fingerprint", info.data_fingerprint);
  write_lineage(file, info.lineage);

  write_files(file, "/tokenizer", info.tokenizer);
  if (!info.carried.empty()) write_files(file, "/carried", info.carried);
  file.create_group("/metrics");
  for (size_t i = 0; i < info.metrics.columns.size(); ++i) {
    const std::string& name = info.metrics.columns[i];
    AMUR_CHECK(!name.empty() && name.find('/') == std::string::npos, "'{}' as a column", name);
    const std::vector<double>& column = info.metrics.values[i];
    const std::string dataset = "/metrics/" + name;
    write_vector(
        file, dataset,
        ConstTensorView(column.data(), Shape{static_cast<int64_t>(column.size())}, DType::f64));
    file.set_attribute(dataset, "column", static_cast<int64_t>(i));
  }
  write_map(file, "/best", info.best);
  write_map(file, "/constants", info.constants);
  write_map(file, "/measured", info.measured_choices);
  write_map(file, "/conditions", info.conditions);
}

CheckpointInfo read_info(const Hdf5File& file, bool allow_incomplete) {
  if (!file.has_attribute("/", "format") ||
      file.attribute_as<std::string>("/", "format") != kCheckpointFormat)
    throw IoError("'{}' is not a checkpoint of Amur", file.path());
  const auto version = file.attribute_as<int64_t>("/", "version");
  if (version != kCheckpointVersion)
    throw IoError("'{}' is a checkpoint of version {}, this program reads version {}", file.path(),
                  version, kCheckpointVersion);
  if (!allow_incomplete && file.attribute_as<int64_t>("/", "complete") != 1)
    throw IoError("'{}' was not written to its end: use an older checkpoint", file.path());

  CheckpointInfo info;
  info.written_by = file.attribute_as<std::string>("/", "written_by");
  info.world_size = static_cast<int>(file.attribute_as<int64_t>("/", "world_size"));
  info.dp = static_cast<int>(file.attribute_as<int64_t>("/", "dp"));
  info.tp = static_cast<int>(file.attribute_as<int64_t>("/", "tp"));
  info.step = file.attribute_as<int64_t>("/state", "step");
  info.position.epoch = file.attribute_as<int64_t>("/state", "epoch");
  info.position.sample = file.attribute_as<int64_t>("/state", "sample");
  info.position.samples_seen = file.attribute_as<int64_t>("/state", "samples_seen");
  info.seed = file.attribute_as<uint64_t>("/state", "seed");
  info.optimizer = file.attribute_as<std::string>("/state", "optimizer");
  info.config_yaml = read_text(file, "/config");
  info.data_fingerprint = read_text(file, "/data/fingerprint");
  info.lineage = read_texts(file, "/lineage");
  info.tokenizer = read_files(file, "/tokenizer");
  if (file.exists("/carried")) info.carried = read_files(file, "/carried");
  info.metrics = read_metrics(file);
  info.best = read_map<double>(file, "/best");
  info.constants = read_map<double>(file, "/constants");
  info.measured_choices = read_map<std::string>(file, "/measured");
  if (file.exists("/conditions")) info.conditions = read_map<std::string>(file, "/conditions");
  return info;
}

}  // namespace amur
