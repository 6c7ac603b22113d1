#include "src/train/checkpoint/inspect.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <limits>
#include <nlohmann/json.hpp>

#include "src/train/checkpoint/checkpoint_format.h"

namespace amur {
namespace {

using Json = nlohmann::ordered_json;

constexpr int64_t kBlockElements = int64_t{1} << 21;
constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

// Moments by Welford's update, so that a mean far from 0 does not cost the deviation its digits.
class Moments {
 public:
  void add(double x) {
    if (!std::isfinite(x)) {
      ++not_finite_;
      return;
    }
    ++n_;
    const double delta = x - mean_;
    mean_ += delta / static_cast<double>(n_);
    squares_ += delta * (x - mean_);
    min_ = std::min(min_, x);
    max_ = std::max(max_, x);
  }
  TensorStatistics result() const {
    if (n_ == 0) return {kNaN, kNaN, kNaN, kNaN, kNaN, not_finite_};
    const double variance = squares_ / static_cast<double>(n_);
    return {mean_, std::sqrt(variance), std::sqrt(variance + mean_ * mean_), min_,
            max_,  not_finite_};
  }

 private:
  int64_t n_ = 0, not_finite_ = 0;
  double mean_ = 0, squares_ = 0;
  double min_ = std::numeric_limits<double>::infinity();
  double max_ = -std::numeric_limits<double>::infinity();
};

template <class T>
void add_all(Moments& moments, ConstTensorView block) {
  const T* values = block.as<T>();
  for (int64_t i = 0; i < block.elements(); ++i) moments.add(static_cast<double>(values[i]));
}

void add_all(Moments& moments, ConstTensorView block) {
  switch (block.dtype()) {
    case DType::f32:
      return add_all<float>(moments, block);
    case DType::f64:
      return add_all<double>(moments, block);
    case DType::i64:
      return add_all<int64_t>(moments, block);
    case DType::i32:
      return add_all<int32_t>(moments, block);
    case DType::u8:
      return add_all<uint8_t>(moments, block);
    case DType::bf16:
      return add_all<bf16>(moments, block);
  }
  throw InternalError(fmt::format("statistics of {}", name_of(block.dtype())));
}

// Calls f(first, block) for all of a data set, some rows at a time.
template <class F>
void for_each_block(const Hdf5File& file, const std::string& path, const DatasetInfo& info, F&& f) {
  const int dims = info.shape.dims();
  Shape first = info.shape;
  for (int d = 0; d < dims; ++d) first = first.with(d, 0);
  if (info.shape.elements() == 0) return;
  const int64_t rows = dims == 0 ? 1 : info.shape[0];
  const int64_t step = std::max<int64_t>(kBlockElements / (info.shape.elements() / rows), 1);
  for (int64_t row = 0; row < rows; row += step) {
    const int64_t count = std::min(step, rows - row);
    if (dims > 0) first = first.with(0, row);
    Tensor block(dims == 0 ? info.shape : info.shape.with(0, count), info.dtype);
    file.read(path, first, block);
    f(first, block.view());
  }
}

TensorReport report_tensor(const Hdf5File& file, const std::string& path,
                           const InspectOptions& options) {
  TensorReport r;
  const DatasetInfo info = file.info(path);
  r.path = path;
  r.dtype = name_of(info.dtype);
  for (int d = 0; d < info.shape.dims(); ++d) r.shape.push_back(info.shape[d]);
  r.axes = file.attribute_as<std::vector<std::string>>(path, "axes");
  r.checksum = file.attribute_as<uint64_t>(path, kChecksumAttribute);
  if (path.starts_with("/model/")) {
    r.kind = file.attribute_as<std::string>(path, "kind");
    r.learning_rate_multiplier = file.attribute_as<double>(path, "learning_rate_multiplier");
    r.decay_multiplier = file.attribute_as<double>(path, "decay_multiplier");
    r.rms_floor = file.attribute_as<double>(path, "rms_floor");
    r.frozen = file.attribute_as<int64_t>(path, "frozen") != 0;
  }
  if (!options.statistics && !options.verify) return r;
  Moments moments;
  uint64_t sum = 0;
  try {
    for_each_block(file, path, info, [&](const Shape& first, ConstTensorView block) {
      if (options.statistics) add_all(moments, block);
      if (options.verify) sum += checksum_of(block, first, info.shape);
    });
    r.damaged = options.verify && sum != r.checksum;
  } catch (const IoError&) {
    r.damaged = true;
  }
  r.statistics = moments.result();
  return r;
}

void report_group(const Hdf5File& file, const std::string& group, const InspectOptions& options,
                  std::vector<TensorReport>* tensors) {
  for (const std::string& name : file.children(group)) {
    const std::string path = group + "/" + name;
    if (file.is_group(path))
      report_group(file, path, options, tensors);
    else
      tensors->push_back(report_tensor(file, path, options));
  }
}

Json number(double x) {
  return std::isfinite(x) ? Json(x) : Json(nullptr);
}

Json json_of(const TensorReport& t, const InspectOptions& options) {
  Json j{{"path", t.path}, {"shape", t.shape}, {"dtype", t.dtype}, {"axes", t.axes}};
  if (!t.kind.empty()) {
    j["kind"] = t.kind;
    j["learning_rate_multiplier"] = number(t.learning_rate_multiplier);
    j["decay_multiplier"] = number(t.decay_multiplier);
    j["rms_floor"] = number(t.rms_floor);
    j["frozen"] = t.frozen;
  }
  j["checksum"] = fmt::format("{:016x}", t.checksum);
  if (options.statistics) {
    const TensorStatistics& s = t.statistics;
    j["mean"] = number(s.mean);
    j["deviation"] = number(s.deviation);
    j["rms"] = number(s.rms);
    j["min"] = number(s.min);
    j["max"] = number(s.max);
    j["not_finite"] = s.not_finite;
  }
  if (options.verify) j["damaged"] = t.damaged;
  return j;
}

Json parsed_or_text(const std::string& text) {
  Json parsed = Json::parse(text, nullptr, false);
  return parsed.is_discarded() ? Json(text) : parsed;
}

std::string indented(const std::string& text) {
  std::string out;
  for (size_t at = 0; at < text.size();) {
    const size_t end = std::min(text.find('\n', at), text.size());
    out += "  " + text.substr(at, end - at) + "\n";
    at = end + 1;
  }
  return out;
}

std::string line_of(const TensorReport& t, const InspectOptions& options, size_t path_width) {
  std::string line = fmt::format("  {:<{}}  {:<4} {:<20} {:<9}", t.path, path_width, t.dtype,
                                 fmt::format("[{}]", fmt::join(t.shape, ", ")), t.kind);
  const TensorStatistics& s = t.statistics;
  if (options.statistics)
    line += fmt::format(" {:>11.4g} {:>11.4g} {:>11.4g} {:>11.4g} {:>11.4g}", s.mean, s.deviation,
                        s.rms, s.min, s.max);
  if (s.not_finite > 0) line += fmt::format("  {} NOT FINITE", s.not_finite);
  if (t.frozen) line += "  frozen";
  if (t.learning_rate_multiplier != 1)
    line += fmt::format("  rate x {:g}", t.learning_rate_multiplier);
  if (t.decay_multiplier != 1) line += fmt::format("  decay x {:g}", t.decay_multiplier);
  if (t.rms_floor != 0) line += fmt::format("  RMS floor {:g}", t.rms_floor);
  if (t.damaged) line += "  DAMAGED";
  while (line.ends_with(' ')) line.pop_back();
  return line + "\n";
}

}  // namespace

bool CheckpointReport::damaged() const {
  return std::any_of(tensors.begin(), tensors.end(),
                     [](const TensorReport& t) { return t.damaged; });
}

CheckpointReport inspect_checkpoint(const InspectOptions& options) {
  const Hdf5File file(options.path, Hdf5File::Mode::read);
  CheckpointReport report;
  report.path = options.path;
  report.file_bytes = static_cast<int64_t>(std::filesystem::file_size(options.path));
  report.info = read_info(file);
  report_group(file, "/model", options, &report.tensors);
  for (const TensorReport& t : report.tensors) {
    int64_t elements = 1;
    for (int64_t size : t.shape) elements *= size;
    report.parameters += elements;
  }
  report_group(file, "/optimizer", options, &report.tensors);
  return report;
}

std::string to_text(const CheckpointReport& report, const InspectOptions& options) {
  const CheckpointInfo& info = report.info;
  std::string out = fmt::format(
      "{}: {:.2f} MB, version {}, written by {} on {} rank{} (dp {}, tp {})\n", report.path,
      static_cast<double>(report.file_bytes) * 1e-6, kCheckpointVersion, info.written_by,
      info.world_size, info.world_size == 1 ? "" : "s", info.dp, info.tp);
  out +=
      fmt::format("step {}, epoch {}, sample {} of it, {} samples seen, seed {}\n", info.step,
                  info.position.epoch, info.position.sample, info.position.samples_seen, info.seed);
  for (const auto& [name, value] : info.best) out += fmt::format("best {}: {:g}\n", name, value);
  out += fmt::format("{} parameters, optimizer {}\n\n", report.parameters,
                     info.optimizer.empty() ? "none" : info.optimizer);

  size_t width = 6;
  for (const TensorReport& t : report.tensors) width = std::max(width, t.path.size());
  out += fmt::format("  {:<{}}  {:<4} {:<20} {:<9}", "tensor", width, "type", "shape", "kind");
  if (options.statistics)
    out += fmt::format(" {:>11} {:>11} {:>11} {:>11} {:>11}", "mean", "deviation", "rms", "min",
                       "max");
  out += '\n';
  for (const TensorReport& t : report.tensors) out += line_of(t, options, width);

  for (const auto& [kind, model] : info.tokenizer)
    out += fmt::format("\ntokenizer: {}, {} bytes\n", kind, model.size());
  out += fmt::format("metrics: {} rows of {}\n", info.metrics.rows(),
                     fmt::join(info.metrics.columns, ", "));
  for (const auto& [name, value] : info.constants) out += fmt::format("{} = {:g}\n", name, value);
  for (const auto& [name, value] : info.measured_choices)
    out += fmt::format("measured: {} = {}\n", name, value);
  for (const auto& [name, value] : info.conditions)
    out += fmt::format("computed with {}: {}\n", name, value);
  out += "\ndata\n" + indented(info.data_fingerprint);
  out += "\nconfiguration\n" + indented(info.config_yaml);
  if (!info.lineage.empty()) out += "\nlineage, oldest first\n";
  for (const std::string& ancestor : info.lineage) out += indented(ancestor);
  if (options.verify)
    out += report.damaged() ? "\nDAMAGED: use an older checkpoint\n" : "\nall check sums agree\n";
  return out;
}

std::string to_json(const CheckpointReport& report, const InspectOptions& options) {
  const CheckpointInfo& info = report.info;
  Json j{{"path", report.path},
         {"file_bytes", report.file_bytes},
         {"version", kCheckpointVersion},
         {"written_by", info.written_by},
         {"grid", {{"ranks", info.world_size}, {"dp", info.dp}, {"tp", info.tp}}},
         {"state",
          {{"step", info.step},
           {"epoch", info.position.epoch},
           {"sample", info.position.sample},
           {"samples_seen", info.position.samples_seen},
           {"seed", info.seed},
           {"optimizer", info.optimizer}}},
         {"parameters", report.parameters}};
  j["best"] = Json::object();
  for (const auto& [name, value] : info.best) j["best"][name] = number(value);
  j["constants"] = Json::object();
  for (const auto& [name, value] : info.constants) j["constants"][name] = number(value);
  j["measured"] = info.measured_choices;
  j["conditions"] = info.conditions;
  j["tokenizer"] = Json::object();
  for (const auto& [kind, model] : info.tokenizer) j["tokenizer"][kind] = model.size();
  j["metrics"] = {{"columns", info.metrics.columns}, {"rows", info.metrics.rows()}};
  j["data_fingerprint"] = info.data_fingerprint;
  j["config"] = info.config_yaml;
  j["lineage"] = Json::array();
  for (const std::string& ancestor : info.lineage) j["lineage"].push_back(parsed_or_text(ancestor));
  j["tensors"] = Json::array();
  for (const TensorReport& t : report.tensors) j["tensors"].push_back(json_of(t, options));
  if (options.verify) j["damaged"] = report.damaged();
  return j.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

InspectResult inspect(const InspectOptions& options) {
  const CheckpointReport report = inspect_checkpoint(options);
  return {options.json ? to_json(report, options) : to_text(report, options),
          report.damaged() ? kExitIo : kExitOk};
}

}  // namespace amur
