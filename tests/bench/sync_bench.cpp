// What the sums of the optimizer cost on the machines that it is started on.
//
//   sync_bench sums [MEGABYTES] [ROUNDS]  one vector summed in each of the ways there are
//   sync_bench step [PAIRS] [ROUNDS]      training steps of so many pairs a rank, with the sums in
//                                         each of these ways, and with communication that does
//                                         nothing
//
// Ways take turns, round by round, because the speed of a shared machine drifts.
#include <algorithm>
#include <cstdio>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "comm/process_grid.h"
#include "comm/runtime.h"
#include "kernels/gemm.h"
#include "src/core/error.h"
#include "src/train/optimizer/optimizer.h"
#include "src/train/stopwatch.h"
#include "src/train/two_pass.h"
#include "tests/bench/silent_communicator.h"

namespace amur {
namespace {

std::unique_ptr<ProcessGrid> open_grid(Runtime& runtime) {
  return std::make_unique<ProcessGrid>(runtime, GridShape{runtime.size(), 1});
}

int sums(Runtime& runtime, int64_t megabytes, int64_t rounds) {
  // A grid for each way: a group has one side stream.
  const auto plain = open_grid(runtime), messages = open_grid(runtime), nodes = open_grid(runtime);
  Tensor values = Tensor::zeros({megabytes * 1'000'000 / 4}, DType::f32);
  Tensor residuals = Tensor::zeros({values.elements()}, DType::f32);
  const TensorView v = values, r = residuals;
  struct Way {
    const char* name;
    Communicator* group;
    Stream stream;
    bool rounded;
  };
  const Stream by_messages = messages->dp().side_stream({.through_nodes = false});
  const Stream by_nodes = nodes->dp().side_stream({.through_nodes = true});
  const std::vector<Way> ways = {
      {"library", &plain->dp(), {}, false},
      {"by messages", &messages->dp(), by_messages, false},
      {"through nodes", &nodes->dp(), by_nodes, false},
      {"by messages, bf16", &messages->dp(), by_messages, true},
      {"through nodes, bf16", &nodes->dp(), by_nodes, true},
  };
  std::vector<double> best(ways.size(), 1e9);
  std::vector<int64_t> bytes(ways.size());
  for (int64_t round = 0; round < rounds; ++round)
    for (size_t i = 0; i < ways.size(); ++i) {
      const Way& way = ways[i];
      const int64_t before = way.group->side_traffic().bytes_sent;
      way.group->barrier();
      Stopwatch watch;
      if (way.rounded)
        way.group->all_reduce_rounded({&v, 1}, {&r, 1}, way.stream);
      else
        way.group->all_reduce(v, ReduceOp::sum, way.stream);
      way.group->synchronize(way.stream);
      best[i] = std::min(best[i], way.group->max(watch.elapsed()));
      bytes[i] = way.group->sum(way.group->side_traffic().bytes_sent - before);
    }
  if (runtime.rank() != 0) return kExitOk;
  fmt::print("{} ranks on {} hosts, {} MB of f32, best of {}\n\n", runtime.size(), runtime.nodes(),
             megabytes, rounds);
  fmt::print("| way | ms | GB/s | MB sent by all ranks |\n| --- | --- | --- | --- |\n");
  for (size_t i = 0; i < ways.size(); ++i)
    fmt::print(
        "| {} | {:.1f} | {:.2f} | {} |\n", ways[i].name, best[i] * 1e3,
        static_cast<double>(megabytes) * 1e-3 / best[i],
        i == 0 ? std::string("-") : fmt::format("{:.0f}", static_cast<double>(bytes[i]) * 1e-6));
  return kExitOk;
}

// A BERT-like encoder: 6 layers of 384, 10.6 M parameters of 17 M in layers.
Config step_config(int64_t pairs) {
  Config c;
  c.model.layers = 6;
  c.model.hidden = 384;
  c.model.heads = 12;
  c.model.ffn = 1536;
  c.model.vocab = 16000;
  c.train.batch_size = pairs;
  c.train.chunk_tokens = 512;
  c.train.activation_budget = int64_t{1} << 40;
  return c;
}

// Texts of 4 to 27 random tokens.
LocalBatch random_batch(int64_t pairs, int rank, int ranks) {
  LocalBatch batch;
  batch.global_queries = pairs * ranks;
  const RandomKey key = RandomKey(9).fold(static_cast<uint64_t>(rank));
  uint64_t drawn = 0;
  const auto draw = [&](int64_t below) {
    return static_cast<int64_t>(key.uniform(drawn++) * static_cast<double>(below));
  };
  for (int64_t i = 0; i < 2 * pairs; ++i) {
    TextUnit text;
    text.sample = rank * pairs + i / 2;
    text.view = i % 2 == 0 ? kViewQuery : kViewPositive;
    text.first = static_cast<int32_t>(batch.tokens.size());
    text.length = static_cast<int32_t>(4 + draw(24));
    text.text_id = static_cast<uint64_t>(2 * text.sample + i % 2) << 8;
    for (int32_t k = 0; k < text.length; ++k)
      batch.tokens.push_back(static_cast<int32_t>(draw(16000)));
    (i % 2 == 0 ? batch.queries : batch.documents).push_back(text);
    if (i % 2 == 0) batch.positive.push_back(static_cast<int32_t>(i / 2));
  }
  return batch;
}

// Median, least and greatest: "0.71 (0.69-0.74)".
std::string spread(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return fmt::format("{:.2f} ({:.2f}-{:.2f})", values[values.size() / 2], values.front(),
                     values.back());
}

// Model, optimizer and group of one way.
struct Variant {
  std::string name;
  std::unique_ptr<ProcessGrid> grid;
  std::unique_ptr<Communicator> silent;
  Config config;
  std::unique_ptr<EmbeddingModel> model;
  std::unique_ptr<Optimizer> optimizer;
  std::unique_ptr<TwoPass> two_pass;
  std::vector<Tensor> touched;
  bool overlap;
  int64_t step = 0;
  std::vector<double> seconds, exposed, under_way, ratio;
  double megabytes = 0;

  Variant(std::string way, bool quiet, SideStreamOptions options, bool rounded, const Config& c,
          Runtime& runtime)
      : name(std::move(way)), grid(open_grid(runtime)), config(c), overlap(options.overlap) {
    if (quiet)
      silent =
          std::make_unique<SilentCommunicator>(runtime.rank(), runtime.size(), &runtime.trace());
    model = std::make_unique<EmbeddingModel>(config, Precision::fp32);
    model->initialise(1);
    optimizer = Optimizer::make(config.optimizer, model->parameters());
    SyncOptions sync;
    sync.stream = dp().side_stream(options);
    sync.groups = model->backward_groups();
    sync.rounded = rounded;
    optimizer->set_sync(std::move(sync));
    two_pass = std::make_unique<TwoPass>(*model, config, dp(), runtime);
    for (Parameter& p : model->parameters())
      if (p.kind == ParamKind::embedding)
        touched.push_back(Tensor::zeros({p.value.view().rows()}, DType::u8));
  }
  Communicator& dp() { return silent ? *silent : grid->dp(); }

  void run(const LocalBatch& batch) {
    for (Tensor& t : touched) fill_zero(t);
    for (const int32_t id : batch.tokens) touched[0].as<uint8_t>()[id] = 1;
    std::fill_n(touched[1].as<uint8_t>(), 32, uint8_t{1});
    grid->dp().barrier();
    const SideTraffic before = dp().side_traffic();
    StepTimes times;
    Stopwatch whole, watch;
    AMUR_CHECK(two_pass->pass1(batch, step, times).finite, "the loss is not finite");
    std::vector<TensorView> bitmaps(touched.begin(), touched.end());
    optimizer->begin_step(step, 1, bitmaps, dp());
    if (overlap)
      two_pass->pass2(times, [this](size_t group) { optimizer->group_done(group, dp()); });
    else
      two_pass->pass2(times);
    watch.lap();
    optimizer->sum_over_ranks(step, dp());
    exposed.push_back(watch.lap());
    optimizer->update(step, 1e-4);
    grid->dp().barrier();
    seconds.push_back(whole.elapsed());
    const SideTraffic after = dp().side_traffic();
    under_way.push_back(after.seconds - before.seconds);
    megabytes = static_cast<double>(grid->dp().sum(after.bytes_sent - before.bytes_sent)) * 1e-6;
    ++step;
  }
};

int steps(Runtime& runtime, int64_t pairs, int64_t rounds) {
  set_compute_threads(runtime.threads());
  const Config config = step_config(pairs);
  std::vector<std::unique_ptr<Variant>> variants;
  const auto add = [&](const char* name, bool quiet, SideStreamOptions options, bool rounded) {
    variants.push_back(std::make_unique<Variant>(name, quiet, options, rounded, config, runtime));
  };
  add("no communication", true, {}, false);
  add("at the end, by messages", false, {.overlap = false, .through_nodes = false}, false);
  add("overlapped, by messages", false, {.through_nodes = false}, false);
  add("at the end, through nodes", false, {.overlap = false}, false);
  add("overlapped, through nodes", false, {}, false);
  add("overlapped, through nodes, bf16", false, {}, true);
  const LocalBatch batch = random_batch(pairs, runtime.rank(), runtime.size());
  for (auto& v : variants) v->run(batch);  // memory and compiled products
  for (auto& v : variants) v->seconds.clear(), v->exposed.clear(), v->under_way.clear();
  for (int64_t round = 0; round < rounds; ++round)
    for (auto& v : variants) {
      v->run(batch);
      v->ratio.push_back(v->seconds.back() / variants[0]->seconds.back());
    }
  if (runtime.rank() != 0) return kExitOk;
  fmt::print("{} ranks on {} hosts, {}; {} pairs and {} tokens on the first rank, {} rounds\n\n",
             runtime.size(), runtime.nodes(), runtime.threads_text(), pairs, batch.tokens.size(),
             rounds);
  fmt::print(
      "| sums | step, s | / no communication | exposed, s | under way, s | MB sent by all ranks "
      "|\n| --- | --- | --- | --- | --- | --- |\n");
  for (auto& v : variants)
    fmt::print("| {} | {} | {} | {} | {} | {:.0f} |\n", v->name, spread(v->seconds),
               spread(v->ratio), spread(v->exposed), spread(v->under_way), v->megabytes);
  return kExitOk;
}

int run(Runtime& runtime, int argc, char** argv) {
  const std::string command = argc > 1 ? argv[1] : "";
  const auto number = [&](int at, int64_t otherwise) {
    return argc > at ? std::stoll(argv[at]) : otherwise;
  };
  if (command == "sums") return sums(runtime, number(2, 64), number(3, 5));
  if (command == "step") return steps(runtime, number(2, 64), number(3, 5));
  throw UsageError("usage: sync_bench sums [MEGABYTES] [ROUNDS] | step [PAIRS] [ROUNDS]");
}

}  // namespace
}  // namespace amur

int main(int argc, char** argv) {
  return amur::run_main(argc, argv,
                        [&](amur::Runtime& runtime) { return amur::run(runtime, argc, argv); });
}
