#include "src/train/session.h"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>

#include "comm/nccl_search.h"
#include "comm/runtime.h"
#include "kernels/elementwise.h"
#include "kernels/gemm.h"
#include "src/core/log.h"
#include "src/train/agreement.h"
#include "src/train/checkpoint/checkpoint_format.h"
#include "src/train/huggingface/import.h"

namespace amur {

Device device_of_rank(int gpus, const Runtime& runtime) {
  return gpus > 0 ? Device::cuda(runtime.node_rank() % gpus) : Device::cpu();
}

std::unique_ptr<ProcessGrid> start_grid(const Config& config, CommBackend backend, Runtime& runtime,
                                        Device device) {
  RuntimeOptions options;
  options.threads = static_cast<int>(config.parallel.threads);
  options.liveness_seconds = config.runtime.liveness_seconds;
  options.progress_seconds = config.runtime.progress_seconds;
  options.check_collectives = config.runtime.check_collectives;
  runtime.start_watchdog(options);
  set_compute_threads(runtime.threads());
  GridShape shape;
  shape.tp = static_cast<int>(config.parallel.tp);
  shape.dp = config.parallel.dp > 0 ? static_cast<int>(config.parallel.dp)
                                    : std::max(1, runtime.size() / shape.tp);
  config.model.require_shares(shape.tp);
  GpuOptions gpu;
  gpu.device = device;
  gpu.cast = cast;
  gpu.limit_seconds = options.progress_seconds;
  if (device != Device::cpu() && backend != CommBackend::mpi) {
    const NcclSearch search = find_nccl();
    if (!search.usable()) gpu.nccl_problem = fmt::format("{}; {}", search.problem, search.remedy);
  }
  return std::make_unique<ProcessGrid>(runtime, shape, backend, gpu);
}

namespace {

// Each rank reads its own share of the weights.
void read_share(const PretrainedModel& folder, const EmbeddingModel& model, Parameter& parameter) {
  const TensorView value = parameter.value;
  Tensor wide;  // bf16 is rounded from what the folder holds
  TensorView host = value;
  if (value.device() != Device::cpu() || value.dtype() == DType::bf16)
    host = wide = Tensor(value.shape(), parameter_dtype(value.dtype()));
  folder.read(parameter, slab_of(parameter, model.tp_rank(), model.tp_size()), host);
  if (!wide.defined()) return;
  Tensor stored(value.shape(), value.dtype());
  cast(wide, stored);
  copy(value, stored);
}

}  // namespace

Config starting_point(const std::string& start_from) {
  const Config saved = checkpoint_config(start_from, {});
  Config config;
  config.model = saved.model;
  const DataConfig& data = saved.data;
  config.data.tokenizer = data.tokenizer;
  config.data.vocab_size = data.vocab_size;
  config.data.character_coverage = data.character_coverage;
  config.data.lower_case = data.lower_case;
  return config;
}

CheckpointInfo start_info(const std::string& start_from, ProcessGrid* grid) {
  if (PretrainedModel::is_folder(start_from))
    return imported_info(PretrainedModel(start_from), start_from);
  return Checkpoint::read_info(resolve_checkpoint(start_from), grid);
}

void begin_rules(const Config& config, EmbeddingModel& model, ProcessGrid& grid) {
  const std::string& start = config.train.start_from;
  if (!start.empty() && !PretrainedModel::is_folder(start))
    Checkpoint::load_rules(resolve_checkpoint(start), model.parameters(), grid,
                           Checkpoint::Wanted::towers);
  apply_parameter_groups(config.optimizer, model.parameters());
}

void begin_model(const Config& config, EmbeddingModel& model, ProcessGrid& grid) {
  model.initialise(config.train.seed);
  const std::string& start = config.train.start_from;
  if (start.empty()) return;
  if (PretrainedModel::is_folder(start)) {
    const PretrainedModel folder(start);
    for (Parameter& p : model.parameters())
      if (!belongs_to_loss("/model/" + p.name)) read_share(folder, model, p);
    return;
  }
  Checkpoint::load(resolve_checkpoint(start), model.parameters(), {}, grid,
                   Checkpoint::Wanted::towers);
  model.set_constants(start_info(start, &grid).constants);
}

std::unique_ptr<Tokenizer> make_tokenizer(const Config& config, const Dataset& data,
                                          Communicator& world) {
  std::string bytes;
  const std::string& start = config.train.start_from;
  read_on_first_rank(world, [&] {
    if (!start.empty()) {
      bytes = tokenizer_of(start_info(start), start)->serialised();
    } else if (!config.data.tokenizer_model.empty()) {
      std::ifstream file(config.data.tokenizer_model, std::ios::binary);
      if (!file)
        throw IoError("data.tokenizer_model: cannot open '{}'", config.data.tokenizer_model);
      bytes.assign(std::istreambuf_iterator<char>(file), {});
    } else {
      bytes = Tokenizer::train(config.data, vocabulary_texts(data))->serialised();
    }
  });
  world.broadcast(bytes, 0);
  const std::string& named = start.empty() ? config.data.tokenizer_model : start;
  const std::string origin = named.empty() ? "the vocabulary just trained" : named;
  auto tokenizer = Tokenizer::from_bytes(std::move(bytes), origin);
  if (std::string_view(tokenizer->kind()) != name_of(config.data.tokenizer))
    throw UsageError("data.tokenizer is {}, but '{}' holds {}: set data.tokenizer to {}",
                     name_of(config.data.tokenizer), origin, tokenizer->kind(), tokenizer->kind());
  return tokenizer;
}

std::string resolve_checkpoint(const std::string& path) {
  namespace fs = std::filesystem;
  constexpr const char* kGive =
      "give a checkpoint file, a run folder, or a model's folder with config.json";
  std::error_code ignored;
  if (!fs::exists(path, ignored)) throw IoError("'{}' does not exist: {}", path, kGive);
  if (!fs::is_directory(path, ignored)) return path;
  for (const fs::path& dir : {fs::path(path) / "checkpoints", fs::path(path)})
    if (fs::is_directory(dir, ignored))
      if (auto newest = Checkpoint::newest_complete(dir.string())) return *newest;
  throw UsageError("'{}' holds no complete checkpoint: {}", path, kGive);
}

Config checkpoint_config(const std::string& path, const std::vector<std::string>& overrides) {
  std::string file = path, yaml;
  if (PretrainedModel::is_folder(path)) {
    yaml = to_yaml(PretrainedModel(path).config());
  } else {
    file = resolve_checkpoint(path);
    yaml = Checkpoint::read_info(file).config_yaml;
  }
  const Config saved = parse_config(yaml, file, {});
  // The grid of the training run is its own affair.
  std::vector<std::string> changes = {"parallel.dp=auto", "parallel.tp=1"};
  changes.insert(changes.end(), overrides.begin(), overrides.end());
  Config config = parse_config(yaml, file, changes);
  for (const ConfigDifference& d : compare_configs(saved, config))
    if (d.key.starts_with("model."))
      throw UsageError("--set {}={}: the model in '{}' has {}; it cannot be changed here", d.key,
                       d.now, file, d.saved);
  return config;
}

std::unique_ptr<Tokenizer> tokenizer_of(const CheckpointInfo& info, const std::string& path) {
  if (info.tokenizer.empty()) throw IoError("'{}' holds no tokenizer", path);
  return Tokenizer::from_bytes(info.tokenizer.begin()->second, path);
}

namespace {

TrainedModel load_folder(const std::string& path, const std::vector<std::string>& overrides,
                         ProcessGrid& grid, Device device) {
  const PretrainedModel folder(path);
  TrainedModel t;
  t.config = checkpoint_config(path, overrides);
  t.info = imported_info(folder, path);
  t.tokenizer = tokenizer_of(t.info, path);
  t.config.model.vocab = t.tokenizer->vocab_size();
  t.model =
      std::make_unique<EmbeddingModel>(t.config, t.config.train.precision, &grid.tp(), device);
  for (Parameter& p : t.model->parameters()) read_share(folder, *t.model, p);
  return t;
}

}  // namespace

TrainedModel load_trained_model(const std::string& path, const std::vector<std::string>& overrides,
                                ProcessGrid& grid, Device device) {
  if (PretrainedModel::is_folder(path)) return load_folder(path, overrides, grid, device);
  TrainedModel t;
  const std::string file = resolve_checkpoint(path);
  t.info = Checkpoint::read_info(file, &grid);
  t.config = checkpoint_config(file, overrides);
  t.tokenizer = tokenizer_of(t.info, file);
  t.config.model.vocab = t.tokenizer->vocab_size();
  t.model =
      std::make_unique<EmbeddingModel>(t.config, t.config.train.precision, &grid.tp(), device);
  Checkpoint::load(file, t.model->parameters(), {}, grid);
  t.model->set_constants(t.info.constants);
  return t;
}

}  // namespace amur
