#include "tests/bench/device_bench.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <numeric>
#include <set>

#include "kernels/attention_engine.h"
#include "kernels/embedding.h"
#include "kernels/gemm.h"
#include "kernels/product.h"
#include "src/core/error.h"
#include "src/train/attention_choices.h"
#include "src/train/budgets.h"
#include "src/train/product_choices.h"
#include "src/train/session.h"
#include "tests/bench/bench_device.h"
#include "tests/bench/bench_step.h"

namespace amur {
namespace {

using Json = nlohmann::ordered_json;

constexpr int64_t kVocabulary = 30522;  // BERT's
constexpr int64_t kWarmUp = 2;          // steps that are not timed: memory, and what is loaded late

struct ModelShape {
  const char* name;
  int64_t layers, hidden, heads;
};
constexpr ModelShape kModelShapes[] = {{"tiny", 2, 64, 2},
                                       {"minilm", 6, 384, 12},
                                       {"bert-base", 12, 768, 12},
                                       {"bert-large", 24, 1024, 16}};

std::vector<std::string> take_overrides(std::vector<std::string>& args) {
  std::vector<std::string> overrides;
  for (std::string value; !(value = take_option(args, "--set", "")).empty();)
    overrides.push_back(value);
  return overrides;
}

int64_t take_number(std::vector<std::string>& args, const std::string& name, int64_t fallback) {
  const std::string text = take_option(args, name, fmt::format("{}", fallback));
  if (text.empty() || text.size() > 12 || text.find_first_not_of("0123456789") != std::string::npos)
    throw UsageError("{} is '{}': give a number", name, text);
  return std::stoll(text);
}

void no_more(const std::vector<std::string>& args) {
  if (!args.empty()) throw UsageError("unknown option '{}'", args.front());
}

// A post-norm encoder as BERT is, without dropout, for texts of up to `longest` tokens.
Config config_of(const std::string& model, int64_t longest,
                 const std::vector<std::string>& overrides) {
  for (const ModelShape& shape : kModelShapes) {
    if (model != shape.name) continue;
    const std::string yaml = fmt::format(
        "model: {{layers: {}, hidden: {}, heads: {}, ffn: {}, max_length: {}, dropout: 0,\n"
        "        norm_position: post, key_bias: true}}\n"
        "data: {{sources: [{{format: tsv, path: none}}]}}\n"
        "train: {{chunk_tokens: 16384, steps: 1, activation_budget: {}GiB}}\n",
        shape.layers, shape.hidden, shape.heads, 4 * shape.hidden, std::max<int64_t>(512, longest),
        kKeepAll >> 30);
    return parse_config(yaml, model, overrides);
  }
  throw UsageError("--model is '{}': use tiny, minilm, bert-base or bert-large", model);
}

Json floors_of(Device device) {
  const Floors floors = measure_floors(device);
  return {{"product_size", floors.product_size},
          {"flops_per_second", floors.flops_per_second},
          {"bytes_per_second", floors.bytes_per_second}};
}

Json begin_report(const char* what, Device device) {
  return {{"what", what},
          {"device", text_of_device(device)},
          {"on_gpu", device.kind == Device::Kind::cuda},
          {"threads", compute_threads()}};
}

int print(const Json& report) {
  std::printf("%s\n", report.dump(1).c_str());
  return kExitOk;
}

void require_one_rank(const Runtime& runtime) {
  if (runtime.size() != 1) throw UsageError("one rank is measured, not {}", runtime.size());
}

using Choices = std::map<std::string, std::string>;

Choices read_choices(const std::string& path) {
  std::ifstream file(path);
  return file ? Json::parse(file).get<Choices>() : Choices();
}

// The products of these chunks and of the loss stage.
Choices choose_products(BenchTrainer& trainer, const std::vector<Chunk>& chunks,
                        const Choices& known, Device device) {
  std::set<int64_t> buckets;
  for (const Chunk& chunk : chunks) buckets.insert(bucket_of(chunk.tokens));
  const Config& config = trainer.config();
  std::vector<Product> products =
      contrastive_loss_products(config.loss, loss_extent(config, trainer.model(), 1), device);
  for (const Product& p : products_of(trainer.model(), config.train.chunk_tokens, trainer.sinks()))
    if (buckets.contains(p.transpose_a == Transpose::yes ? p.k : p.m)) products.push_back(p);
  return measure_products(products, known, device);
}

// The engine of each attention of these chunks, and what says so.
AttentionEngines choose_attentions(const Config& config, const LocalBatch& batch,
                                   const std::vector<Chunk>& chunks, Choices& known,
                                   Device device) {
  AttentionEngines engines;
  const std::string library = other_attention_library(device);
  if (library.empty()) return engines;
  const auto queries = static_cast<int32_t>(batch.queries.size());
  std::set<int64_t> lengths;
  for (const Chunk& chunk : chunks) {
    int32_t longest = 0;
    for (const int32_t u : chunk.units)
      longest =
          std::max(longest, u < queries ? batch.queries[static_cast<size_t>(u)].length
                                        : batch.documents[static_cast<size_t>(u - queries)].length);
    lengths.insert(length_bucket(longest));
  }
  for (const int64_t longest : lengths)
    for (const auto direction : {AttentionDirection::forward, AttentionDirection::backward}) {
      const AttentionKind kind{direction, config.model.heads, config.model.resolved_head_size(),
                               longest};
      std::string& chosen = known[choice_name(kind, text_of_device(device), library)];
      if (chosen.empty()) {
        const int64_t tokens = std::max(config.train.chunk_tokens, longest);
        chosen = name_of(time_attention_engines(kind, tokens, device).faster());
      }
      if (chosen == name_of(AttentionEngine::cudnn)) engines.chosen[kind] = AttentionEngine::cudnn;
    }
  return engines;
}

// What a training chooses by measuring, for this batch, where `runtime.attention` and
// `runtime.tune` leave it to that: each speaks of its own choice alone, so that the two can be told
// apart. Text about the attention.
std::string make_choices(BenchTrainer& trainer, const LocalBatch& batch, Device device,
                         const std::string& path) {
  if (device == Device::cpu()) return "own";
  const Config& config = trainer.config();
  const std::vector<Chunk> chunks = plan_chunks(batch, config.train.chunk_tokens, false);
  Choices known = path.empty() ? Choices() : read_choices(path);
  AttentionEngines engines;
  if (config.runtime.attention == AttentionChoice::cudnn)
    engines.otherwise = AttentionEngine::cudnn;
  else if (config.runtime.attention == AttentionChoice::automatic && trainer.dtype() == DType::bf16)
    engines = choose_attentions(config, batch, chunks, known, device);
  use_attention_engines(engines, device);
  if (config.runtime.tune) {
    known.merge(choose_products(trainer, chunks, known, device));
    use_product_choices(known);
  }
  if (!path.empty()) std::ofstream(path) << Json(known).dump(1) << '\n';
  if (engines.otherwise == AttentionEngine::cudnn) return "cuDNN wherever it can";
  std::string text;
  for (const auto& [kind, engine] : engines.chosen)
    text += fmt::format("{}{} to {} by cuDNN", text.empty() ? "" : ", ", name_of(kind.direction),
                        kind.longest);
  return text.empty() ? "own" : text;
}

Json phases_of(const StepTimes& times) {
  return {{"touch", times.data},
          {"pass1", times.pass1},
          {"loss", times.loss},
          {"pass2", times.pass2},
          {"update", times.update}};
}

}  // namespace

int bench_step(Runtime& runtime, std::vector<std::string> args) {
  require_one_rank(runtime);
  const Device device = take_device(args);
  const std::string model = take_option(args, "--model", "minilm");
  const int64_t pairs = take_number(args, "--pairs", 256);
  const int64_t length = take_number(args, "--length", 128);
  const int64_t longest = take_number(args, "--longest", length);
  const int64_t steps = take_number(args, "--steps", 5);
  const std::string precision = take_option(args, "--precision", "bf16");
  if (precision != "bf16" && precision != "fp32")
    throw UsageError("--precision is '{}': use bf16 or fp32", precision);
  const bool with_floors = take_option(args, "--floors", "yes") != "no";
  const std::string choices_file = take_option(args, "--choices", "");
  const std::vector<std::string> overrides = take_overrides(args);
  no_more(args);
  if (pairs < 1 || length < 2 || longest > 8192 || steps < 1)
    throw UsageError("at least 1 pair, 2 tokens and 1 step, at most 8192 tokens");

  Config config = config_of(model, longest, overrides);
  const auto grid = start_grid(config, CommBackend::mpi, runtime, device);
  config.model.vocab = kVocabulary;
  config.train.batch_size = pairs;
  const LocalBatch batch = random_batch(pairs, length, longest, kVocabulary, config.train.seed);
  BenchTrainer trainer(config, precision == "bf16" ? Precision::bf16 : Precision::fp32, *grid,
                       runtime, device);
  const std::string attention = make_choices(trainer, batch, device, choices_file);
  for (int64_t i = 0; i < kWarmUp; ++i) trainer.step(batch, config.train.activation_budget);
  std::vector<BenchStep> done;
  std::vector<double> seconds;
  for (int64_t i = 0; i < steps; ++i) {
    done.push_back(trainer.step(batch, config.train.activation_budget));
    seconds.push_back(done.back().seconds);
  }
  Json report = begin_report("step", device);
  const size_t peak = peak_device_bytes(device);  // before the floors take theirs
  std::sort(done.begin(), done.end(),
            [](const BenchStep& a, const BenchStep& b) { return a.seconds < b.seconds; });
  const BenchStep& typical = done[done.size() / 2];
  const double step_seconds = typical.seconds, flops = 3 * typical.forward_flops;
  report.update({{"model", model},
                 {"precision", precision},
                 {"optimizer", trainer.optimizer_name()},
                 {"overrides", overrides},
                 {"parameters", trainer.parameters()},
                 {"pairs", pairs},
                 {"mean_length", typical.tokens / static_cast<double>(2 * pairs)},
                 {"longest", longest},
                 {"chunk_tokens", config.train.chunk_tokens},
                 {"chunks", typical.chunks},
                 {"recomputed_chunks", typical.recomputed},
                 {"steps", steps},
                 {"warm_up_steps", kWarmUp},
                 {"attention", attention},
                 {"seconds", step_seconds},
                 {"all_seconds", seconds},
                 {"phases", phases_of(typical.times)},
                 {"loss", typical.loss},
                 {"tokens_per_second", typical.tokens / step_seconds},
                 {"pairs_per_second", static_cast<double>(pairs) / step_seconds},
                 {"model_flops", flops},
                 {"model_flops_per_second", flops / step_seconds},
                 {"weight_bytes", trainer.weight_bytes()},
                 {"optimizer_bytes", trainer.optimizer_bytes()},
                 {"peak_bytes", peak},
                 {"activation_bytes", trainer.activation_bytes(batch)}});
  if (with_floors) {
    const Json floors = floors_of(device);
    report["floors"] = floors;
    report["fraction"] = flops / step_seconds / floors["flops_per_second"].get<double>();
  }
  return print(report);
}

int bench_loss(Runtime& runtime, std::vector<std::string> args) {
  require_one_rank(runtime);
  const Device device = take_device(args);
  const bool gpu = device.kind == Device::Kind::cuda;
  const int64_t rows = take_number(args, "--rows", gpu ? 65536 : 1024);
  const int64_t width = take_number(args, "--width", 768);
  const std::vector<std::string> overrides = take_overrides(args);
  no_more(args);
  if (rows < 1 || width < 1) throw UsageError("at least 1 row and a width of 1");

  const Config config = config_of("tiny", 0, overrides);
  const auto grid = start_grid(config, CommBackend::mpi, runtime, device);
  if (device != Device::cpu() && config.runtime.tune) {
    const LossExtent extent{rows, rows, rows, rows, width, 1, DType::f32};
    use_product_choices(
        measure_products(contrastive_loss_products(config.loss, extent, device), {}, device));
  }
  Tensor texts = random_tensor({2 * rows, width}, DType::f32, device);
  {
    Tensor norm({2 * rows}, DType::f32, device);
    normalise_forward(texts, texts, norm);
  }
  const ConstTensorView queries = texts.view().slice(0, rows);
  const ConstTensorView documents = texts.view().slice(rows, rows);
  Tensor dq({rows, width}, DType::f32, device), dk({rows, width}, DType::f32, device);
  std::vector<uint64_t> query_ids(static_cast<size_t>(rows)), document_ids(query_ids);
  std::iota(query_ids.begin(), query_ids.end(), uint64_t{1});
  std::iota(document_ids.begin(), document_ids.end(), static_cast<uint64_t>(rows) + 1);
  std::vector<int32_t> positive(static_cast<size_t>(rows));
  std::iota(positive.begin(), positive.end(), 0);
  ContrastiveInput input;
  input.queries = queries;
  input.documents = documents;
  input.query_ids = query_ids;
  input.document_ids = document_ids;
  input.positive = positive;

  const size_t before = memory_use(device).now;
  ContrastiveOutput out;
  const double seconds = seconds_of(device, [&] {
    out = contrastive_loss(config.loss, std::log(config.loss.scale), config.loss.bias, input, dq,
                           dk, grid->dp());
  });
  Json report = begin_report("loss", device);
  const size_t extra = peak_device_bytes(device) - before;
  const double n = static_cast<double>(rows), flops = 8 * n * n * static_cast<double>(width);
  report.update({{"rows", rows},
                 {"width", width},
                 {"overrides", overrides},
                 {"seconds", seconds},
                 {"loss", out.loss},
                 {"flops", flops},
                 {"flops_per_second", flops / seconds},
                 {"extra_bytes", extra},
                 {"stated_extra_bytes", out.peak_bytes}});
  const Json floors = floors_of(device);
  report["floors"] = floors;
  report["fraction"] = flops / seconds / floors["flops_per_second"].get<double>();
  return print(report);
}

}  // namespace amur
