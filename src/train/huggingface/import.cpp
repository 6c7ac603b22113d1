#include "src/train/huggingface/import.h"

#include <filesystem>
#include <nlohmann/json.hpp>

#include "comm/runtime.h"
#include "src/core/version.h"
#include "src/train/agreement.h"
#include "src/train/checkpoint/checkpoint_output.h"
#include "src/train/embedding_model.h"

namespace amur {
namespace {

using Json = nlohmann::ordered_json;

}  // namespace

CheckpointInfo imported_info(const PretrainedModel& model, const std::string& folder) {
  CheckpointInfo info;
  info.written_by = fmt::format("amur {}", kVersion);
  info.config_yaml = to_yaml(model.config());
  info.tokenizer = {{model.tokenizer().kind(), model.tokenizer().serialised()}};
  info.constants = EmbeddingModel::outline(model.config(), Precision::fp32)->constants();
  info.carried = model.carried();
  const auto path = std::filesystem::weakly_canonical(folder);
  info.lineage = {Json{{"imported_from", path.filename().string()},
                       {"class", name_of(model.kind())},
                       {"base_model", model.base_model()},
                       {"parameters", model.parameters()}}
                      .dump()};
  return info;
}

ImportResult import_pretrained(const ImportOptions& options, ProcessGrid& grid, Runtime& runtime) {
  Communicator& world = grid.world();
  runtime.set_phase("reading the model's folder");
  if (!options.force && std::filesystem::exists(options.output))
    throw UsageError("'{}' is there already: give another name, or --force", options.output);
  const PretrainedModel model(options.folder);
  const auto outline = EmbeddingModel::outline(model.config(), Precision::fp32);
  CheckpointInfo info = imported_info(model, options.folder);
  info.world_size = world.size();
  info.dp = grid.shape().dp;
  info.tp = grid.shape().tp;
  ImportResult result;
  result.kind = name_of(model.kind());
  result.base_model = model.base_model();
  result.parameters = model.parameters();
  result.tokens = model.config().model.vocab;
  result.max_length = model.config().model.max_length;
  result.embedding_size = outline->embedding_size();
  for (const auto& [name, bytes] : info.carried) result.carried.push_back(name);

  const std::vector<StoredTensor> tensors =
      outlined_tensors(outline->parameters(), {}, info.optimizer, DType::f32);
  CheckpointOutput output(options.output, info, tensors, file_options(model.config().checkpoint),
                          world);
  info.carried.clear();
  const auto ranks = static_cast<size_t>(world.size()), rank = static_cast<size_t>(world.rank());
  for (size_t i = 0; i < tensors.size(); ++i) {
    const StoredTensor& t = tensors[i];
    runtime.set_phase(fmt::format("writing {}", t.path));
    const std::vector<Slab> boxes = boxes_of(t.global, kExchangeBlock);
    for (size_t first = 0; first < boxes.size(); first += ranks) {
      Tensor values;
      output.write(i, [&]() -> CheckpointOutput::Part {
        if (first + rank >= boxes.size())
          return {t.slab.first, ConstTensorView(nullptr, Shape{0}, DType::f32)};
        const Slab& box = boxes[first + rank];
        values = Tensor(box.count, DType::f32);
        model.read(*t.parameter, box, values);
        return {box.first, values};
      });
      runtime.advance();
    }
    model.release();
  }
  output.close();
  runtime.set_phase("reading the new checkpoint back");
  output.verify([&](size_t i) {
    // Those of the next rank.
    const std::vector<Slab> boxes = boxes_of(tensors[i].global, kExchangeBlock);
    std::vector<Slab> mine;
    for (size_t b = (rank + 1) % ranks; b < boxes.size(); b += ranks) mine.push_back(boxes[b]);
    return mine;
  });
  output.publish();
  return result;
}

std::string to_text(const ImportResult& result, const ImportOptions& options) {
  std::string carried;
  for (const std::string& name : result.carried)
    carried += fmt::format("{}{}", carried.empty() ? "" : ", ", name);
  return fmt::format(
      "{} ({}): {} parameters, {} tokens, texts of up to {} tokens, embeddings of {}\n"
      "carried along for export: {}\n"
      "written to {}\n",
      result.base_model, result.kind, result.parameters, result.tokens, result.max_length,
      result.embedding_size, carried.empty() ? "nothing" : carried, options.output);
}

std::string to_json(const ImportResult& result, const ImportOptions& options) {
  return Json{{"input", options.folder},
              {"output", options.output},
              {"class", result.kind},
              {"base_model", result.base_model},
              {"parameters", result.parameters},
              {"tokens", result.tokens},
              {"max_length", result.max_length},
              {"embedding_size", result.embedding_size},
              {"carried", result.carried}}
      .dump(2);
}

}  // namespace amur
