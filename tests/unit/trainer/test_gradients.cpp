// Promise 1: the gradient of the global batch, at this rank count and any chunking, tile size and
// kind of batch, against the independent reference; and the mistakes that must be caught.
#include <gtest/gtest.h>

#include <map>

#include "comm/runtime.h"
#include "kernels/elementwise.h"
#include "src/train/session.h"
#include "src/train/text_embedder.h"
#include "src/train/two_pass.h"
#include "src/train/verify_gradient.h"
#include "tests/support/mpi_runtime.h"
#include "tests/support/sanitized.h"
#include "tests/support/small_data.h"

namespace amur {
namespace {

struct Case {
  std::string name;
  std::vector<std::string> overrides;
  int batch = 24;
  bool hard = false;
};

// One data set and vocabulary for all cases of a process.
class GradientTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    Runtime& runtime = test_runtime();
    grid_ = new ProcessGrid(runtime, {runtime.size(), 1});
    folder_ = new test::TemporaryFolder("amur_gradients_" + std::to_string(runtime.rank()));
    test::write_small_data(folder_->path("easy.jsonl"), 64, false);
    test::write_small_data(folder_->path("hard.jsonl"), 64, true);
  }
  static void TearDownTestSuite() {
    delete folder_;
    delete grid_;
  }

  static Config config_of(const Case& c) {
    std::vector<std::string> overrides = {
        "model.layers=1",
        "model.hidden=16",
        "model.heads=2",
        "model.ffn=24",
        "model.dropout=0.1",
        "model.word_dropout=0.1",
        "model.max_length=12",
        "model.embedding_std=0.3",
        "model.init_std=0.2",
        "data.vocab_size=60",
        "data.sources.0.format=jsonl",
        "data.eval_share=0",
        "data.sources.0.path=" + folder_->path(c.hard ? "hard.jsonl" : "easy.jsonl"),
        "data.hard_negatives=" + std::to_string(c.hard ? 2 : 0),
        "train.batch_size=" + std::to_string(c.batch),
        "train.chunk_tokens=100000"};
    overrides.insert(overrides.end(), c.overrides.begin(), c.overrides.end());
    return parse_config("data:\n  sources:\n    - format: jsonl\n", "test", overrides);
  }

  static GradientCertificate certify(const Case& c, GradientFault fault = GradientFault::none) {
    return certify(c, fault, *grid_);
  }
  static GradientCertificate certify(const Case& c, GradientFault fault, ProcessGrid& grid) {
    Config config = config_of(c);
    const Dataset data(config.data, grid.world(), grid.node());
    const auto tokenizer = make_tokenizer(config, data, grid.world());
    config.model.vocab = tokenizer->vocab_size();
    return verify_gradient(config, data, *tokenizer, c.batch, fault, grid, test_runtime());
  }

  static inline ProcessGrid* grid_ = nullptr;
  static inline test::TemporaryFolder* folder_ = nullptr;
};

// Under sanitizers, where nothing else is asked for, every fifth of those of the losses.
std::vector<Case> all_cases(int every = test::kSanitized ? 5 : 1) {
  const std::vector<std::pair<std::string, std::vector<std::string>>> losses = {
      {"one direction", {"loss.symmetric=false"}},
      {"symmetric", {}},
      {"siglip", {"loss.kind=siglip", "loss.scale=10"}},
  };
  // About one, two and five chunks of the whole batch on one rank.
  const std::vector<std::string> chunks = {"100000", "160", "64"};
  int number = 0;
  std::vector<Case> cases;
  for (const auto& [loss, overrides] : losses)
    for (const std::string& chunk_tokens : chunks)
      for (const bool hard : {false, true})
        for (const int batch : {24, 23}) {
          if (number++ % every != 0) continue;
          Case c{fmt::format("{}, chunks of {}, {}, {} samples", loss, chunk_tokens,
                             hard ? "masked and hard negatives" : "plain", batch),
                 overrides, batch, hard};
          c.overrides.push_back("train.chunk_tokens=" + chunk_tokens);
          const bool small_tiles = hard == (batch == 24);
          c.overrides.push_back(fmt::format("loss.tile_rows={}", small_tiles ? 3 : 256));
          c.overrides.push_back(fmt::format("loss.tile_columns={}", small_tiles ? 5 : 1024));
          c.overrides.push_back(fmt::format("train.activation_budget={}", hard ? 0 : 20000));
          cases.push_back(c);
        }
  cases.push_back(
      {"one tower against all", {"loss.candidates=all", "train.chunk_tokens=64"}, 23, true});
  cases.push_back(
      {"separate towers", {"model.towers=separate", "train.chunk_tokens=64"}, 23, true});
  cases.push_back({"fewer samples than ranks", {"train.chunk_tokens=64"}, 5, false});
  cases.push_back({"static", {"model.layers=0"}, 23, true});
  cases.push_back(
      {"local layers",
       {"model.layers=2", "model.position=rotary", "model.bias=false", "model.activation=geglu",
        "model.local_attention=4", "model.global_every=2", "model.local_rotary_base=50",
        "model.attention_dropout=0.1", "train.chunk_tokens=64", "train.activation_budget=5000"},
       23,
       true});
  return cases;
}

TEST_F(GradientTest, MatchesTheReferenceInDoubleAndSingle) {
  for (const Case& c : all_cases()) {
    const GradientCertificate certificate = certify(c);
    EXPECT_TRUE(certificate.pass) << c.name << '\n' << to_table(certificate);
    ASSERT_EQ(certificate.checks.size(), 2u);
    EXPECT_LE(certificate.checks[0].max_relative_error, 1e-12) << c.name;
    EXPECT_LE(certificate.checks[1].max_relative_error, 1e-5) << c.name;
  }
}

// Products of the loss in bf16: in double nothing is rounded, in fp32 the reference rounds alike.
TEST_F(GradientTest, MatchesTheReferenceThatRoundsAlike) {
  std::vector<Case> cases = {{"symmetric", {"train.chunk_tokens=64"}, 23, true},
                             {"siglip", {"loss.kind=siglip", "loss.scale=10"}, 24, false},
                             {"one tower", {"loss.candidates=all"}, 23, true}};
  for (Case& c : cases) {
    c.overrides.push_back("loss.precision=bf16");
    const GradientCertificate certificate = certify(c);
    EXPECT_TRUE(certificate.pass) << c.name << '\n' << to_table(certificate);
    ASSERT_EQ(certificate.checks.size(), 2u);
    EXPECT_LE(certificate.checks[0].max_relative_error, 1e-12) << c.name;
    // It does round.
    EXPECT_GT(certificate.checks[1].max_relative_error, 1e-4) << c.name;
    const GradientCertificate wrong = certify(c, GradientFault::mean_of_local_means);
    EXPECT_FALSE(wrong.checks[1].pass) << c.name << '\n' << to_table(wrong);
  }
}

// What one grid makes of a case: this rank's part of every gradient, summed over dp, and the loss
// and embeddings that it sees.
struct GridRun {
  GridRun(const Config& config, const Dataset& data, const Tokenizer& tokenizer, Communicator& dp,
          Communicator& tp)
      : model(config, config.train.precision, &tp), tp_rank(tp.rank()), tp_size(tp.size()) {
    model.initialise(config.train.seed);
    for (Parameter& p : model.parameters()) {
      sinks.push_back(Tensor::zeros(p.value.shape(), p.value.dtype()));
      p.sink = sinks.back();
      p.sink_scale = 1;
    }
    const LocalBatch batch = BatchStream(data, tokenizer, config, dp.rank(), dp.size(), {}).next();
    TwoPass two_pass(model, config, dp, test_runtime());
    StepTimes times;
    const BatchGradient gradient = two_pass.pass1(batch, 0, times);
    EXPECT_TRUE(gradient.finite);
    loss = gradient.loss.loss;
    two_pass.pass2(times);
    for (Tensor& s : sinks) dp.all_reduce(s.view(), ReduceOp::sum);
    std::vector<std::string> texts;
    for (int i = 0; i < 20; ++i)
      texts.push_back(test::small_text(RandomKey(5).fold(static_cast<uint64_t>(i)), 6));
    TextEmbedder embedder(model, tokenizer, config, dp, test_runtime());
    embeddings = embedder.embed(texts, 1);
  }

  EmbeddingModel model;
  int tp_rank, tp_size;
  std::vector<Tensor> sinks;
  double loss = 0;
  Tensor embeddings;
};

std::vector<double> in_double(ConstTensorView view) {
  Tensor wide(view.shape(), DType::f64);
  cast(view, wide);
  return {wide.as<double>(), wide.as<double>() + wide.elements()};
}

double squares_of(const std::vector<double>& v) {
  double sum = 0;
  for (double x : v) sum += x * x;
  return sum;
}

// The largest relative error of a gradient (design 9), the loss and the embeddings.
double difference(GridRun& run, GridRun& alone, Communicator& tp, std::string& worst) {
  double squares = 0, elements = 0;
  for (const Tensor& t : alone.sinks) {
    squares += squares_of(in_double(t));
    elements += static_cast<double>(t.elements());
  }
  double largest = std::abs(run.loss - alone.loss) / std::abs(alone.loss);
  worst = "the loss";
  const auto take = [&](double error, const std::string& name) {
    if (error <= largest) return;
    largest = error;
    worst = name;
  };
  const std::vector<double> z = in_double(run.embeddings), z0 = in_double(alone.embeddings);
  double wrong = 0;
  for (size_t k = 0; k < z.size(); ++k) wrong += (z[k] - z0[k]) * (z[k] - z0[k]);
  take(std::sqrt(wrong / squares_of(z0)), "the embeddings");
  for (size_t i = 0; i < alone.sinks.size(); ++i) {
    const Parameter& p = run.model.parameters()[i];
    const std::vector<double> got = in_double(run.sinks[i]), want = in_double(alone.sinks[i]);
    wrong = 0;
    for_each_element(
        slab_of(p, run.tp_rank, run.tp_size), p.global_shape(), [&](int64_t local, int64_t global) {
          const double d = got[static_cast<size_t>(local)] - want[static_cast<size_t>(global)];
          wrong += d * d;
        });
    if (p.sharding.axis >= 0) wrong = tp.sum(wrong);
    const double floor = 1e-3 * std::sqrt(static_cast<double>(want.size()) * squares / elements);
    take(std::sqrt(wrong) / std::max(std::sqrt(squares_of(want)), floor), p.name);
  }
  return largest;
}

TEST_F(GradientTest, GridsAgree) {
  const int ranks = test_runtime().size();
  for (int tp = 1; tp <= std::min(ranks, 5); ++tp) {
    if (ranks % tp != 0) continue;
    ProcessGrid grid(test_runtime(), {ranks / tp, tp});
    std::map<std::string, double> largest;
    std::vector<Case> cases = tp > 1 ? all_cases(1) : all_cases();
    if (tp > 1) {
      // One of each kind: the rest is the business of dp. 5 heads, 22 feed-forward units and 60
      // tokens: the shares are uneven.
      const size_t losses = cases.size() - 4;
      for (size_t i = 0; i < 5; ++i) cases[i] = cases.at(7 * i);
      cases.erase(cases.begin() + 5, cases.begin() + static_cast<long>(losses));
      for (Case& c : cases)
        for (const char* set :
             {"model.heads=5", "model.head_size=4", "model.ffn=22", "model.attention_dropout=0.1"})
          c.overrides.push_back(set);
    }
    for (Case& c : cases) {
      const Config chosen = config_of(c);
      const Dataset data(chosen.data, grid_->world(), grid_->node());
      const auto tokenizer = make_tokenizer(chosen, data, grid_->world());
      for (const auto& [precision, bound] : {std::pair{"fp32", 2e-6}, std::pair{"fp64", 1e-12}}) {
        if (tp == 1 && bound < 1e-6) continue;  // as against the reference, above
        // The gradients of five samples cancel to what single precision leaves of them.
        if (tp > 1 && bound > 1e-6 && c.batch == 5) continue;
        c.overrides.push_back(fmt::format("train.precision={}", precision));
        Config config = config_of(c);
        config.model.vocab = tokenizer->vocab_size();
        GridRun here(config, data, *tokenizer, grid.dp(), grid.tp());
        GridRun alone(config, data, *tokenizer, grid_->tp(), grid_->tp());
        std::string worst;
        const double error = difference(here, alone, grid.tp(), worst);
        EXPECT_LE(error, bound) << fmt::format("dp {} x tp {}, {}: {}", ranks / tp, tp, worst,
                                               c.name);
        largest[precision] = std::max(largest[precision], error);
      }
    }
    for (const auto& [precision, error] : largest)
      RecordProperty(fmt::format("largest_{}_at_{}x{}", precision, ranks / tp, tp),
                     fmt::format("{:.1e}", error));
  }
}

// `amur verify-grad` where a tp group shares the model.
TEST_F(GradientTest, CertificateOfSharedModels) {
  const int ranks = test_runtime().size();
  for (int tp = 2; tp <= std::min(ranks, 5); ++tp) {
    if (ranks % tp != 0) continue;
    ProcessGrid grid(test_runtime(), {ranks / tp, tp});
    const Case c{"", {"train.chunk_tokens=64", "model.heads=5", "model.head_size=4"}, 23, true};
    EXPECT_TRUE(certify(c, GradientFault::none, grid).pass);
    EXPECT_FALSE(certify(c, GradientFault::temperature_in_replay, grid).pass);
  }
}

TEST_F(GradientTest, MistakesAreCaught) {
  for (const GradientFault fault :
       {GradientFault::naive_accumulation, GradientFault::mean_of_local_means,
        GradientFault::temperature_in_replay}) {
    const GradientCertificate certificate =
        certify({"", {"train.chunk_tokens=64"}, 23, false}, fault);
    EXPECT_FALSE(certificate.pass) << static_cast<int>(fault);
    EXPECT_GT(certificate.checks[0].max_relative_error, 1e-3) << static_cast<int>(fault);
    EXPECT_LE(certificate.max_direction_error, certificate.direction_bound);
  }
}

// A GPU without enough memory: what to set instead.
TEST(MemoryAdvice, SaysWhatWouldFit) {
  EXPECT_EQ(memory_advice(1000, size_t{100} << 20, size_t{300} << 20),
            "set train.activation_budget to 200MiB at most");
  EXPECT_EQ(memory_advice(1000, size_t{100} << 20, size_t{50} << 20),
            "the largest train.chunk_tokens that would fit is about 450, with "
            "train.activation_budget=0");
}

}  // namespace
}  // namespace amur
