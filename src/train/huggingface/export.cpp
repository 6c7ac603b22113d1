#include "src/train/huggingface/export.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>
#include <utility>

#include "comm/runtime.h"
#include "kernels/elementwise.h"
#include "src/train/agreement.h"
#include "src/train/checkpoint/checkpoint_format.h"
#include "src/train/embedding_model.h"
#include "src/train/huggingface/export_files.h"
#include "src/train/huggingface/pretrained_model.h"
#include "src/train/session.h"

namespace amur {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

constexpr double kSameScale = 1e-9;  // relative
constexpr const char* kProjection = "projection.weight";

// `eps` and statistics of the norms, as the classes have them: one eps, of all coordinates.
double eps_of_norms(Encoder& encoder, const ModelConfig& model) {
  std::optional<double> eps;
  for (const ModelConstant& c : encoder.constants()) {
    if (c.kind == ConstantKind::norm_eps) {
      if (eps && *eps != *c.value)
        throw UsageError(
            "{} is {}, and that of another norm {}: the classes of Hugging Face have one "
            "model.norm_eps",
            c.name, *c.value, *eps);
      eps = *c.value;
    }
    if (c.kind == ConstantKind::norm_statistics_width &&
        *c.value != static_cast<double>(model.hidden))
      throw UsageError(
          "{} is {} of {} coordinates (the model was widened with --old-statistics): the LayerNorm "
          "of other programs does not know this number",
          c.name, *c.value, model.hidden);
  }
  return eps.value_or(model.norm_eps);
}

// What the queries of a layer are multiplied by, since the classes scale by 1 / sqrt(head size):
// by the name of its attention, "layers.0.attention".
std::map<std::string, double, std::less<>> query_factors(Encoder& encoder,
                                                         const ModelConfig& model) {
  std::map<std::string, double, std::less<>> factors;
  for (const ModelConstant& c : encoder.constants()) {
    if (c.kind != ConstantKind::attention_scale) continue;
    const double usual = 1 / std::sqrt(static_cast<double>(model.resolved_head_size()));
    const std::string_view name = name_in_tower(c.name);
    if (std::abs(*c.value - usual) > kSameScale * usual)
      factors.emplace(name.substr(0, name.rfind('.')), *c.value / usual);
  }
  return factors;
}

class Exporter {
 public:
  Exporter(const ExportOptions& options, Runtime& runtime)
      : options_(options),
        runtime_(runtime),
        checkpoint_(resolve_checkpoint(options.checkpoint)),
        info_(Checkpoint::read_info(checkpoint_)),
        config_(parse_config(info_.config_yaml, checkpoint_, {})),
        tokenizer_(tokenizer_of(info_, checkpoint_)) {
    config_.model.vocab = tokenizer_->vocab_size();
    outline_ = EmbeddingModel::outline(config_, Precision::fp32);
    outline_->set_constants(info_.constants);
    choose_tower();
    choose_class();
    layout_.emplace(encoder_);
    for (const Parameter& p : outline_->parameters())
      if (p.name.starts_with(prefix_)) parameters_ += p.global_elements();
    ExportedModel model = exported();
    files_ = text_files(model);
    files_["README.md"] = model_card(model);
  }

  ExportResult result() const {
    ExportResult result;
    result.kind = name_of(encoder_.kind);
    result.parameters = parameters_;
    for (const auto& [name, text] : files_) result.files.push_back(name);
    result.files.emplace_back(kWeightsFile);
    if (encoder_.model.projection > 0)
      result.files.push_back(fmt::format("{}{}", kDenseFolder, kWeightsFile));
    std::sort(result.files.begin(), result.files.end());
    result.notes = notes_;
    return result;
  }

  // Everything, into a folder that is there.
  void write(const fs::path& folder) {
    for (const auto& [name, text] : files_) {
      fs::create_directories((folder / name).parent_path());
      std::ofstream file(folder / name, std::ios::binary);
      file << text;
      file.close();
      if (!file) throw IoError("cannot write '{}'", (folder / name).string());
    }
    const Hdf5File input(checkpoint_, Hdf5File::Mode::read);
    std::vector<SafetensorsInfo> tensors = layout_->tensors();
    for (const Safetensors::Entry* entry : carried_) tensors.push_back(*entry);
    const std::map<std::string, std::string> metadata = {{"format", "pt"}};
    SafetensorsWriter writer((folder / kWeightsFile).string(), tensors, metadata);
    for (const Parameter& p : outline_->parameters())
      if (p.name.starts_with(prefix_) && name_in_tower(p.name) != kProjection)
        copy(p, input, writer);
    for (const Safetensors::Entry* entry : carried_)
      writer.write(entry->name, 0, std::as_bytes(std::span(entry->bytes)));
    for (const auto& [index, entry] : carried_rows_) {
      std::vector<float> rows(static_cast<size_t>(entry->elements()));
      blob_->read(*entry, 0,
                  TensorView(rows.data(), Shape{static_cast<int64_t>(rows.size())}, DType::f32));
      writer.write(entry->name, layout_->rest(index).first, std::as_bytes(std::span(rows)));
    }
    writer.close();
    if (encoder_.model.projection > 0) write_projection(folder / kDenseFolder, input, metadata);
  }

 private:
  ExportedModel exported() const {
    return {encoder_, info_, config_, *tokenizer_, as_imported_, parameters_};
  }

  void choose_tower() {
    const std::string& tower = options_.tower;
    if (!outline_->separate_towers()) {
      prefix_ = "encoder.";
      return;
    }
    if (tower.empty())
      throw UsageError(
          "model.towers separate: a folder holds one encoder; say which with --tower query or "
          "--tower document");
    prefix_ = tower + "_encoder.";
    notes_.push_back(fmt::format("the {} encoder only", tower));
  }

  void choose_class() {
    Encoder& tower = outline_->tower(options_.tower == "document" ? 1 : 0);
    ModelConfig model = config_.model;
    model.norm_eps = eps_of_norms(tower, model);
    factors_ = query_factors(tower, model);
    if (!factors_.empty())
      notes_.emplace_back("the scale of attention went into the query weights");
    std::optional<HuggingFaceEncoder> was;
    if (const auto it = info_.carried.find("config.json"); it != info_.carried.end())
      was = read_encoder(it->second, it->first);
    encoder_ = encoder_class(model, was ? std::optional(was->kind) : std::nullopt);
    as_imported_ = was && was->kind == encoder_.kind;
    if (!as_imported_) {
      if (encoder_.kind == HuggingFaceClass::static_embedding) take_carried_rows();
      return;
    }
    encoder_.token_types = was->token_types;
    encoder_.first_position = was->first_position;
    encoder_.table_rows = std::max(was->table_rows, model.vocab);
    take_carried(was->model.hidden == model.hidden);
  }

  // Rows of an imported static model's table that no token has.
  void take_carried_rows() {
    const auto it = info_.carried.find(kCarriedTensors);
    if (it == info_.carried.end()) return;
    const Safetensors blob(it->second, kCarriedTensors);
    const Safetensors::Entry* rows = blob.find("embedding.weight");
    const bool fits =
        rows != nullptr && rows->shape.size() == 2 && rows->shape[1] == encoder_.model.hidden;
    if (fits) encoder_.table_rows += rows->shape[0];
    take_carried(fits);
  }

  // What the import found no use for goes where it came from, as far as it still fits.
  void take_carried(bool same_width) {
    const auto it = info_.carried.find(kCarriedTensors);
    if (it == info_.carried.end()) return;
    blob_.emplace(it->second, kCarriedTensors);
    const TensorLayout layout(encoder_);
    for (const Safetensors::Entry& entry : blob_->tensors()) {
      const std::optional<size_t> index = layout.index_of(entry.name);
      if (!same_width)
        notes_.push_back(fmt::format("{} is left out: it has the old width", entry.name));
      else if (!index)
        carried_.push_back(&entry);
      else if (layout.rest(*index).count == entry.elements())
        carried_rows_.emplace_back(*index, &entry);
      else
        notes_.push_back(fmt::format("rows of {} are 0: their number has changed", entry.name));
    }
  }

  // Calls place(first, values) for the elements of a parameter, in order, and compares check sums.
  template <class F>
  void each_block(const Parameter& parameter, const Hdf5File& input, const F& place) {
    const std::string path = "/model/" + parameter.name;
    const Shape shape = parameter.global_shape();
    const DType stored = input.info(path).dtype;
    uint64_t sum = 0;
    runtime_.set_phase(fmt::format("writing {}", parameter.name));
    std::vector<float> block;
    for (const Slab& box : boxes_of(shape, kExchangeBlock)) {
      Tensor values(box.count, stored);
      input.read(path, box.first, values);
      sum += checksum_of(values, box.first, shape);
      block.resize(static_cast<size_t>(values.elements()));
      cast(values, TensorView(block.data(), values.shape(), DType::f32));
      for_each_run(box, shape, [&](int64_t at, int64_t first, int64_t count) {
        place(first, std::span(block).subspan(static_cast<size_t>(at), static_cast<size_t>(count)));
      });
      runtime_.advance();
    }
    const auto wanted = input.attribute_as<uint64_t>(path, kChecksumAttribute);
    if (sum != wanted) throw IoError("{}", damage_text(checkpoint_, path, wanted, sum));
  }

  void copy(const Parameter& parameter, const Hdf5File& input, SafetensorsWriter& writer) {
    const std::string_view name = name_in_tower(parameter.name);
    const std::vector<TensorLayout::Run>& runs = layout_->runs(name);
    AMUR_CHECK(!runs.empty(), "{} has no place in the {} class", parameter.name,
               name_of(encoder_.kind));
    const size_t fused = name.find(".qkv.");
    const auto factor =
        fused == std::string_view::npos ? factors_.end() : factors_.find(name.substr(0, fused));
    // Axis 0 is query, key and value (weights), or query and value (biases).
    const int64_t queries = parameter.global_elements() / parameter.axes[0].size;
    each_block(parameter, input, [&](int64_t first, std::span<float> values) {
      const int64_t end = first + static_cast<int64_t>(values.size());
      if (factor != factors_.end())
        for (int64_t i = first; i < std::min(end, queries); ++i) {
          float& x = values[static_cast<size_t>(i - first)];
          x = static_cast<float>(static_cast<double>(x) * factor->second);
        }
      for (const TensorLayout::Run& run : runs) {
        const int64_t from = std::max(first, run.first), to = std::min(end, run.first + run.count);
        if (from < to)
          writer.write(layout_->tensors()[run.tensor].name, run.tensor_first + from - run.first,
                       std::as_bytes(values.subspan(static_cast<size_t>(from - first),
                                                    static_cast<size_t>(to - from))));
      }
    });
  }

  void write_projection(const fs::path& folder, const Hdf5File& input,
                        const std::map<std::string, std::string>& metadata) {
    SafetensorsInfo weight;
    weight.name = "linear.weight";
    weight.dtype = "F32";
    weight.shape = {encoder_.model.projection, encoder_.model.hidden};
    SafetensorsWriter writer((folder / kWeightsFile).string(), {weight}, metadata);
    each_block(*outline_->parameters().find(prefix_ + kProjection), input,
               [&](int64_t first, std::span<float> values) {
                 writer.write(weight.name, first, std::as_bytes(values));
               });
    writer.close();
  }

  const ExportOptions& options_;
  Runtime& runtime_;
  std::string checkpoint_;
  CheckpointInfo info_;
  Config config_;
  std::unique_ptr<Tokenizer> tokenizer_;
  std::unique_ptr<EmbeddingModel> outline_;
  std::string prefix_;  // of the tower's parameters
  HuggingFaceEncoder encoder_;
  bool as_imported_ = false;
  std::map<std::string, double, std::less<>> factors_;
  std::optional<Safetensors> blob_;  // of info_.carried
  std::vector<const Safetensors::Entry*> carried_;
  std::vector<std::pair<size_t, const Safetensors::Entry*>> carried_rows_;  // of layout tensors
  std::optional<TensorLayout> layout_;
  int64_t parameters_ = 0;
  std::map<std::string, std::string> files_;
  std::vector<std::string> notes_;
};

// `from` becomes `to`; what is there is only given up when the new folder stands in its place.
void move_into_place(const fs::path& from, const fs::path& to) {
  const fs::path old = to.string() + ".amur-old";
  if (fs::exists(to)) {
    fs::remove_all(old);
    fs::rename(to, old);
  }
  fs::rename(from, to);
  fs::remove_all(old);
}

}  // namespace

ExportResult export_pretrained(const ExportOptions& options, Communicator& world,
                               Runtime& runtime) {
  runtime.set_phase("reading the checkpoint");
  std::string name = options.folder;
  while (name.size() > 1 && name.back() == '/') name.pop_back();
  const fs::path folder(name), temporary(name + ".amur-tmp");
  const bool taken = world.max(int64_t{fs::exists(folder) && !fs::is_empty(folder)}) > 0;
  if (taken && !options.force)
    throw UsageError("'{}' is there already: give another name, or --force", name);
  Exporter exporter(options, runtime);
  on_first_rank(world, [&] {
    try {
      fs::remove_all(temporary);
      fs::create_directories(temporary);
      exporter.write(temporary);
      move_into_place(temporary, folder);
    } catch (...) {
      std::error_code ignored;
      fs::remove_all(temporary, ignored);
      throw;
    }
  });
  return exporter.result();
}

std::string to_text(const ExportResult& result, const ExportOptions& options) {
  std::string out = fmt::format("{}: {} parameters, {} files in {}\n", result.kind,
                                result.parameters, result.files.size(), options.folder);
  for (const std::string& note : result.notes) out += fmt::format("note: {}\n", note);
  return out;
}

std::string to_json(const ExportResult& result, const ExportOptions& options) {
  return Json{{"input", options.checkpoint}, {"output", options.folder},
              {"class", result.kind},        {"parameters", result.parameters},
              {"files", result.files},       {"notes", result.notes}}
      .dump(2);
}

}  // namespace amur
