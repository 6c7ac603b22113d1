// Promise 1: the gradient of the global batch, at this rank count and any chunking, tile size and
// kind of batch, against the independent reference; and the mistakes that must be caught.
#include <gtest/gtest.h>

#include "comm/runtime.h"
#include "src/train/session.h"
#include "src/train/verify_gradient.h"
#include "tests/support/small_data.h"
#include "tests/support/mpi_runtime.h"

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
        "model.layers=1",  "model.hidden=16", "model.heads=2",        "model.ffn=24",
        "model.dropout=0.1", "model.word_dropout=0.1", "model.max_length=12",
        "model.embedding_std=0.3", "model.init_std=0.2", "data.vocab_size=60",
        "data.sources.0.format=jsonl", "data.eval_share=0",
        "data.sources.0.path=" + folder_->path(c.hard ? "hard.jsonl" : "easy.jsonl"),
        "data.hard_negatives=" + std::to_string(c.hard ? 2 : 0),
        "train.batch_size=" + std::to_string(c.batch), "train.chunk_tokens=100000"};
    overrides.insert(overrides.end(), c.overrides.begin(), c.overrides.end());
    return parse_config("data:\n  sources:\n    - format: jsonl\n", "test", overrides);
  }

  static GradientCertificate certify(const Case& c, GradientFault fault = GradientFault::none) {
    Config config = config_of(c);
    const Dataset data(config.data, grid_->world(), grid_->node());
    const auto tokenizer = make_tokenizer(config, data, grid_->world());
    config.model.vocab = tokenizer->vocab_size();
    return verify_gradient(config, data, *tokenizer, c.batch, fault, *grid_, test_runtime());
  }

  static inline ProcessGrid* grid_ = nullptr;
  static inline test::TemporaryFolder* folder_ = nullptr;
};

std::vector<Case> all_cases() {
  const std::vector<std::pair<std::string, std::vector<std::string>>> losses = {
      {"one direction", {"loss.symmetric=false"}},
      {"symmetric", {}},
      {"siglip", {"loss.kind=siglip", "loss.scale=10"}},
  };
  // About one, two and five chunks of the whole batch on one rank.
  const std::vector<std::string> chunks = {"100000", "160", "64"};
  std::vector<Case> cases;
  for (const auto& [loss, overrides] : losses)
    for (const std::string& chunk_tokens : chunks)
      for (const bool hard : {false, true})
        for (const int batch : {24, 23}) {
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
  cases.push_back({"one tower against all", {"loss.candidates=all", "train.chunk_tokens=64"}, 23, true});
  cases.push_back({"separate towers", {"model.towers=separate", "train.chunk_tokens=64"}, 23, true});
  cases.push_back({"fewer samples than ranks", {"train.chunk_tokens=64"}, 5, false});
  cases.push_back({"static", {"model.layers=0"}, 23, true});
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

TEST_F(GradientTest, SinglePrecisionAgreesBetweenGrids) {
  for (const Case& c : all_cases()) {
    Config config = config_of(c);
    const Dataset data(config.data, grid_->world(), grid_->node());
    const auto tokenizer = make_tokenizer(config, data, grid_->world());
    config.model.vocab = tokenizer->vocab_size();
    const auto gradient = [&](Communicator& dp) {
      EmbeddingModel model(config, Precision::fp32);
      model.initialise(config.train.seed);
      std::vector<Tensor> sinks;
      for (Parameter& p : model.parameters()) {
        sinks.push_back(Tensor::zeros(p.value.shape(), p.value.dtype()));
        p.sink = sinks.back();
        p.sink_scale = 1;
      }
      const LocalBatch batch =
          BatchStream(data, *tokenizer, config, dp.rank(), dp.size(), {}).next();
      TwoPass two_pass(model, config, dp, test_runtime());
      StepTimes times;
      EXPECT_TRUE(two_pass.pass1(batch, 0, times).finite);
      two_pass.pass2(times);
      for (Tensor& s : sinks) dp.all_reduce(s.view(), ReduceOp::sum);
      return sinks;
    };
    const std::vector<Tensor> here = gradient(grid_->dp()), alone = gradient(grid_->tp());
    double squares = 0, elements = 0;
    for (const Tensor& t : alone) {
      for (int64_t k = 0; k < t.elements(); ++k) squares += t.as<float>()[k] * t.as<float>()[k];
      elements += static_cast<double>(t.elements());
    }
    for (size_t i = 0; i < alone.size(); ++i) {
      double difference = 0, norm = 0;
      for (int64_t k = 0; k < alone[i].elements(); ++k) {
        const double a = alone[i].as<float>()[k], d = here[i].as<float>()[k] - a;
        difference += d * d;
        norm += a * a;
      }
      const double floor =
          1e-3 * std::sqrt(static_cast<double>(alone[i].elements()) * squares / elements);
      EXPECT_LE(std::sqrt(difference) / std::max(std::sqrt(norm), floor), 2e-6)
          << c.name << ", tensor " << i;
    }
  }
}

TEST_F(GradientTest, MistakesAreCaught) {
  for (const GradientFault fault :
       {GradientFault::naive_accumulation, GradientFault::mean_of_local_means,
        GradientFault::temperature_in_replay}) {
    const GradientCertificate certificate = certify({"", {"train.chunk_tokens=64"}, 23, false}, fault);
    EXPECT_FALSE(certificate.pass) << static_cast<int>(fault);
    EXPECT_GT(certificate.checks[0].max_relative_error, 1e-3) << static_cast<int>(fault);
    EXPECT_LE(certificate.max_direction_error, certificate.direction_bound);
  }
}

}  // namespace
}  // namespace amur
