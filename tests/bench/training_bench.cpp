// Speed of training steps as ratios within one run: a MiniLM-sized encoder (6 layers of 384) under
// Tiger on the German-English dictionary.
//
//   training_bench vocabulary FILE       trains the vocabulary that the others read
//   training_bench ratios FILE [ROUNDS]  one rank: share of the products' rate, cost of two passes,
//                                        packed against padded
//   training_bench rate FILE [STEPS]     any number of ranks: pairs a second
//   training_bench step|loss [OPTIONS]   on a CPU or a GPU: tests/bench/device_bench.cpp
//
// Variants take turns on the same batch, round by round, because the speed of a shared machine
// drifts; a ratio is taken inside each round. tests/bench/run.sh runs all of it.
#include <algorithm>
#include <array>
#include <cstdio>
#include <fstream>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "comm/process_grid.h"
#include "comm/runtime.h"
#include "kernels/elementwise.h"
#include "kernels/gemm.h"
#include "src/core/error.h"
#include "src/core/log.h"
#include "src/train/data/data.h"
#include "src/train/session.h"
#include "src/train/stopwatch.h"
#include "tests/bench/bench_device.h"
#include "tests/bench/bench_step.h"
#include "tests/bench/device_bench.h"

namespace amur {
namespace {

Config bench_config() {
  Config c;
  c.model.layers = 6;
  c.model.hidden = 384;
  c.model.heads = 12;
  c.model.ffn = 1536;
  c.model.norm_position = NormPosition::post;
  c.data.vocab_size = 16000;
  c.data.sources.resize(1);
  c.data.sources[0].format = SourceFormat::trans_de_en;
  c.train.batch_size = 256;
  c.train.chunk_tokens = 1024;
  c.train.activation_budget = kKeepAll;
  return c;
}

// Median, least and greatest of one figure over the rounds.
class Samples {
 public:
  void add(double value) { values_.push_back(value); }
  double median() const {
    std::vector<double> sorted = values_;
    std::sort(sorted.begin(), sorted.end());
    const size_t n = sorted.size();
    return (sorted[(n - 1) / 2] + sorted[n / 2]) / 2;
  }
  // "0.71 (0.69-0.74)"
  std::string text() const {
    const auto [least, most] = std::minmax_element(values_.begin(), values_.end());
    return fmt::format("{:.2f} ({:.2f}-{:.2f})", median(), *least, *most);
  }

 private:
  std::vector<double> values_;
};

// The twelve products of a layer, forward and backward, as the encoder calls them: the rate at
// which a step without anything else would run.
class LayerProducts {
 public:
  LayerProducts(const ModelConfig& model, int64_t tokens, DType dtype) : tokens_(tokens) {
    const int64_t d = model.hidden, ffn = model.resolved_ffn();
    for (const auto& [in, out] : {std::pair{d, 3 * d}, {d, d}, {d, ffn}, {ffn, d}}) {
      Linear l;
      l.x = random_tensor({tokens, in}, dtype, Device::cpu());
      l.w = random_tensor({out, in}, dtype, Device::cpu());
      l.dy = random_tensor({tokens, out}, dtype, Device::cpu());
      l.y = Tensor({tokens, out}, dtype);
      l.dx = Tensor({tokens, in}, dtype);
      l.dw = Tensor::zeros({out, in}, DType::f32);
      flops_ += 6.0 * static_cast<double>(tokens * in * out);
      linears_.push_back(std::move(l));
    }
  }
  double flops_per_second(int repeats) {
    run();
    Stopwatch watch;
    for (int i = 0; i < repeats; ++i) run();
    return repeats * flops_ / watch.elapsed();
  }

 private:
  struct Linear {
    Tensor x, w, dy;  // [T, in] [out, in] [T, out]
    Tensor y, dx, dw;
  };
  void run() {
    for (Linear& l : linears_) gemm(Transpose::no, Transpose::yes, 1, l.x, l.w, 0, l.y);
    for (Linear& l : linears_) {
      gemm(Transpose::yes, Transpose::no, 0.035, l.dy, l.x, 1, l.dw);
      gemm(Transpose::no, Transpose::no, 1, l.dy, l.w, 0, l.dx);
    }
  }
  int64_t tokens_;
  double flops_ = 0;
  std::vector<Linear> linears_;
};

// The batch as a trainer without packing sees it: each text is lengthened to the longest of its
// group by repeating its last token. Groups are the packed chunks, or as many texts in the order of
// the data.
LocalBatch padded(const LocalBatch& batch, int64_t chunk_tokens, bool sorted) {
  std::vector<Chunk> groups = plan_chunks(batch, chunk_tokens, false);
  const auto queries = std::ssize(batch.queries), texts = queries + std::ssize(batch.documents);
  if (!sorted) {
    const auto count = std::ssize(groups);
    for (int64_t g = 0; g < count; ++g) {
      std::vector<int32_t>& units = groups[static_cast<size_t>(g)].units;
      units.clear();
      for (int64_t u = g * texts / count; u < (g + 1) * texts / count; ++u)
        units.push_back(static_cast<int32_t>(u % 2 == 0 ? u / 2 : queries + u / 2));
    }
  }
  LocalBatch result = batch;
  const auto unit_of = [&](int32_t unit) -> TextUnit& {
    return unit < queries ? result.queries[static_cast<size_t>(unit)]
                          : result.documents[static_cast<size_t>(unit - queries)];
  };
  for (const Chunk& group : groups) {
    int32_t longest = 0;
    for (const int32_t u : group.units) longest = std::max(longest, unit_of(u).length);
    for (const int32_t u : group.units) {
      TextUnit& text = unit_of(u);
      const auto first = static_cast<int32_t>(result.tokens.size());
      for (int32_t k = 0; k < longest; ++k)
        result.tokens.push_back(
            batch.tokens[static_cast<size_t>(text.first + std::min(k, text.length - 1))]);
      text.first = first;
      text.length = longest;
    }
  }
  return result;
}

// What one precision showed, a value a round.
struct Figures {
  Samples gemm_rate, efficiency, half, none, padded_sorted, padded_unsorted, extra_tokens;
  Samples products, pass1, pass2, loss, update;  // shares of the step with everything kept
};

void measure_round(BenchTrainer& bench, LayerProducts& products, const LocalBatch& batch,
                   Figures& f) {
  const int64_t chunk = bench.config().train.chunk_tokens;
  const LocalBatch sorted = padded(batch, chunk, true), unsorted = padded(batch, chunk, false);
  const int64_t all_bytes = bench.activation_bytes(batch);
  const int repeats = bench.dtype() == DType::f32 ? 4 : 8;

  const double rate_before = products.flops_per_second(repeats);
  const BenchStep full = bench.step(batch);
  const double rate_after = products.flops_per_second(repeats);
  const BenchStep half = bench.step(batch, all_bytes / 2 + all_bytes / 16);
  const BenchStep none = bench.step(batch, 0);
  const BenchStep full_again = bench.step(batch);
  const BenchStep pad_sorted = bench.step(sorted);
  const BenchStep pad_unsorted = bench.step(unsorted);

  const double rate = (rate_before + rate_after) / 2, model_flops = 3 * full.forward_flops;
  f.gemm_rate.add(rate * 1e-9);
  f.efficiency.add(model_flops / full.seconds / rate);
  f.products.add(100 * model_flops / rate / full.seconds);
  f.pass1.add(100 * full.times.pass1 / full.seconds);
  f.loss.add(100 * full.times.loss / full.seconds);
  f.pass2.add(100 * full.times.pass2 / full.seconds);
  f.update.add(100 * (full.times.update + full.times.data) / full.seconds);
  const double one_pass = (full.seconds + full_again.seconds) / 2;
  f.half.add(half.seconds / one_pass);
  f.none.add(none.seconds / one_pass);
  f.padded_sorted.add(pad_sorted.seconds / one_pass);
  f.padded_unsorted.add(pad_unsorted.seconds / one_pass);
  f.extra_tokens.add(pad_unsorted.tokens / full.tokens);
  Log::info(
      "{}: {:.1f} GFLOP/s of products, a step {:.2f} s, half {:.2f} s, none {:.2f} s, padded "
      "{:.2f} s and {:.2f} s",
      name_of(bench.dtype()), rate * 1e-9, one_pass, half.seconds, none.seconds, pad_sorted.seconds,
      pad_unsorted.seconds);
}

void print_table(const std::vector<std::pair<std::string, Samples Figures::*>>& rows,
                 const Figures& fp32, const Figures& bf16) {
  fmt::print("| | fp32 | bf16 |\n| --- | --- | --- |\n");
  for (const auto& [name, member] : rows)
    fmt::print("| {} | {} | {} |\n", name, (fp32.*member).text(), (bf16.*member).text());
}

// What a step is made of, from the batches: the lengths decide what packing saves.
void print_lengths(const std::vector<LocalBatch>& batches) {
  std::vector<int32_t> lengths;
  for (const LocalBatch& b : batches) {
    for (const TextUnit& u : b.queries) lengths.push_back(u.length);
    for (const TextUnit& u : b.documents) lengths.push_back(u.length);
  }
  std::sort(lengths.begin(), lengths.end());
  const auto at = [&](size_t percent) { return lengths[(lengths.size() - 1) * percent / 100]; };
  fmt::print("Tokens a text, markers included: median {}, 90 % of texts at most {}, longest {}.\n",
             at(50), at(90), at(100));
}

std::vector<LocalBatch> read_batches(const Config& config, ProcessGrid& grid, int64_t count) {
  const Dataset data(config.data, grid.world(), grid.node());
  const auto tokenizer = make_tokenizer(config, data, grid.world());
  AMUR_CHECK(tokenizer->vocab_size() == config.model.vocab, "a vocabulary of {} tokens, not {}",
             tokenizer->vocab_size(), config.model.vocab);
  BatchStream stream(data, *tokenizer, config, grid.dp_rank(), grid.shape().dp, {});
  std::vector<LocalBatch> batches;
  for (int64_t i = 0; i < count; ++i) batches.push_back(stream.next());
  return batches;
}

void print_machine(const Runtime& runtime, const Config& config) {
  fmt::print("{} ranks, {}; {}.\n", runtime.size(), runtime.threads_text(), gemm_library_text());
  fmt::print("Batches of {} pairs, chunks of {} tokens.\n", config.train.batch_size,
             config.train.chunk_tokens);
}

int ratios(Runtime& runtime, Config config, int64_t rounds) {
  const auto grid = start_grid(config, CommBackend::mpi, runtime);
  if (runtime.size() != 1) throw UsageError("ratios: one rank, not {}", runtime.size());
  config.model.vocab = config.data.vocab_size;
  const std::vector<LocalBatch> batches = read_batches(config, *grid, rounds + 1);
  const auto chunk_tokens = config.train.chunk_tokens;
  std::array<Figures, 2> figures;
  std::vector<std::unique_ptr<BenchTrainer>> benches;
  std::vector<LayerProducts> products;
  for (const Precision precision : {Precision::fp32, Precision::bf16}) {
    benches.push_back(std::make_unique<BenchTrainer>(config, precision, *grid, runtime));
    products.emplace_back(config.model, chunk_tokens, benches.back()->dtype());
    benches.back()->step(batches[0]);  // memory and compiled products
  }
  for (int64_t round = 1; round <= rounds; ++round)
    for (size_t i = 0; i < benches.size(); ++i)
      measure_round(*benches[i], products[i], batches[static_cast<size_t>(round)], figures[i]);

  print_machine(runtime, config);
  print_lengths(batches);
  fmt::print("Median of {} rounds (least-greatest).\n\n### Training against the products alone\n\n",
             rounds);
  print_table({{"products of a layer, GFLOP/s", &Figures::gemm_rate},
               {"**model FLOP/s of training / that**", &Figures::efficiency},
               {"of a step: products at that rate, %", &Figures::products},
               {"pass 1, %", &Figures::pass1},
               {"loss stage, %", &Figures::loss},
               {"pass 2, %", &Figures::pass2},
               {"update, %", &Figures::update}},
              figures[0], figures[1]);
  fmt::print("\n### Time of a step, as a multiple of one that keeps all activations\n\n");
  print_table(
      {{"half of the activations kept", &Figures::half},
       {"none kept", &Figures::none},
       {"padded to the longest of a chunk, texts sorted by length", &Figures::padded_sorted},
       {"padded to the longest of a chunk, texts in order", &Figures::padded_unsorted},
       {"tokens of the latter / packed tokens", &Figures::extra_tokens}},
      figures[0], figures[1]);
  return kExitOk;
}

int rate(Runtime& runtime, Config config, int64_t steps) {
  const auto grid = start_grid(config, CommBackend::mpi, runtime);
  config.model.vocab = config.data.vocab_size;
  const std::vector<LocalBatch> batches = read_batches(config, *grid, steps + 1);
  for (const Precision precision : {Precision::fp32, Precision::bf16}) {
    BenchTrainer bench(config, precision, *grid, runtime);
    bench.step(batches[0]);
    grid->world().barrier();
    Stopwatch watch;
    for (int64_t i = 1; i <= steps; ++i) bench.step(batches[static_cast<size_t>(i)]);
    grid->world().barrier();
    const double seconds = watch.elapsed();
    if (runtime.rank() == 0)
      fmt::print("{} {} ranks x {} threads: {:.1f} pairs/s\n",
                 precision == Precision::fp32 ? "fp32" : "bf16", runtime.size(), runtime.threads(),
                 static_cast<double>(steps * config.train.batch_size) / seconds);
  }
  return kExitOk;
}

int vocabulary(Runtime& runtime, const Config& config, const std::string& path) {
  const auto grid = start_grid(config, CommBackend::mpi, runtime);
  const Dataset data(config.data, grid->world(), grid->node());
  const auto tokenizer = Tokenizer::train(config.data, vocabulary_texts(data, 25'000));
  std::ofstream file(path, std::ios::binary);
  file << tokenizer->serialised();
  file.close();
  if (!file) throw IoError("cannot write '{}'", path);
  return kExitOk;
}

int run(Runtime& runtime, int argc, char** argv) {
  if (argc >= 2 && argv[1] == std::string("step"))
    return bench_step(runtime, {argv + 2, argv + argc});
  if (argc >= 2 && argv[1] == std::string("loss"))
    return bench_loss(runtime, {argv + 2, argv + argc});
  const std::string command = argc >= 3 && argc <= 4 ? argv[1] : "";
  Config config = bench_config();
  if (command == "vocabulary") return vocabulary(runtime, config, argv[2]);
  if (command == "ratios" || command == "rate") {
    config.data.tokenizer_model = argv[2];
    const int64_t count = argc == 4 ? std::stoll(argv[3]) : 3;
    return command == "ratios" ? ratios(runtime, config, count) : rate(runtime, config, count);
  }
  throw UsageError(
      "usage: training_bench vocabulary FILE | ratios FILE [ROUNDS] | rate FILE [STEPS] | step | "
      "loss");
}

}  // namespace
}  // namespace amur

int main(int argc, char** argv) {
  amur::start_again_for_blas(argv);
  return amur::run_main(argc, argv,
                        [&](amur::Runtime& runtime) { return amur::run(runtime, argc, argv); });
}
