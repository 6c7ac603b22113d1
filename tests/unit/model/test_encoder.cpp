// What the trainer relies on: replay, chunks, memory, sinks, names.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "src/model/linear.h"
#include "src/model/step_copies.h"
#include "tests/unit/model/fixture.h"

namespace amur::test {
namespace {

ModelConfig noisy_config() {
  ModelConfig config = tiny_config();
  config.dropout = 0.2;
  config.attention_dropout = 0.1;
  config.projection = 5;
  return config;
}

std::vector<std::vector<double>> gradients(const TestEncoder& model) {
  std::vector<std::vector<double>> all;
  for (const Tensor& sink : model.sinks) all.push_back(to_doubles(sink));
  return all;
}

TEST(Encoder, KeptAndRecomputedChunksGiveTheSameBits) {
  for (DType dtype : {DType::f32, DType::bf16, DType::f64}) {
    const ModelConfig config = noisy_config();
    const std::vector<TestChunk> chunks = [&] {
      std::vector<TestChunk> v;
      v.emplace_back(std::vector<TestChunk::Text>{{1, 4}, {2, 2}}, config.vocab);
      v.emplace_back(std::vector<TestChunk::Text>{{3, 7}}, config.vocab);
      v.emplace_back(std::vector<TestChunk::Text>{{4, 1}, {5, 5}, {6, 3}}, config.vocab);
      return v;
    }();
    std::vector<std::vector<double>> kept_embeddings, first;
    for (size_t kept : {size_t{0}, size_t{1}, size_t{3}}) {
      TestEncoder model(config, dtype, 0.5);
      std::vector<std::vector<double>> embeddings;
      size_t bytes = 0;
      for (size_t c = 0; c < 3; ++c) {
        const bool keep = c + kept >= 3;
        embeddings.push_back(to_doubles(model.forward(chunks[c], true, keep)));
        if (keep)
          bytes += model.encoder.saved_bytes(chunks[c].view().tokens(),
                                             chunks[c].view().sequences(), dtype);
        EXPECT_EQ(model.saved.bytes(), bytes);
      }
      for (size_t c = 3; c-- > 0;) {
        if (c + kept < 3) {
          EXPECT_EQ(to_doubles(model.forward(chunks[c])), embeddings[c]);
        }
        model.backward(chunks[c]);
      }
      EXPECT_EQ(model.saved.bytes(), 0u);
      if (kept == 0) {
        first = gradients(model);
        kept_embeddings = embeddings;
      }
      EXPECT_EQ(embeddings, kept_embeddings) << kept << " kept, " << name_of(dtype);
      EXPECT_EQ(gradients(model), first) << kept << " kept, " << name_of(dtype);
    }
  }
}

// The embedding of a text, dropout included, and the sum of gradients do not depend on the chunks.
TEST(Encoder, ChunksDoNotChangeTheResult) {
  const ModelConfig config = noisy_config();
  const std::vector<TestChunk::Text> texts = {{1, 4}, {2, 2}, {3, 7}, {4, 1}, {5, 5}};
  const std::vector<std::vector<size_t>> splits[] = {
      {{0, 1, 2, 3, 4}}, {{0}, {1}, {2}, {3}, {4}}, {{4, 2}, {3, 0, 1}}};
  for (const auto& [dtype, bound] : {std::pair{DType::f32, 1e-6}, std::pair{DType::f64, 1e-13}}) {
    std::vector<double> expected, expected_gradients;
    for (const auto& split : splits) {
      TestEncoder model(config, dtype);
      std::vector<double> embeddings(texts.size() * 5);
      for (const auto& members : split) {
        std::vector<TestChunk::Text> part;
        for (size_t i : members) part.push_back(texts[i]);
        const TestChunk chunk(part, config.vocab);
        const std::vector<double> h = to_doubles(model.forward(chunk));
        model.backward(chunk);
        for (size_t j = 0; j < members.size(); ++j)
          std::copy_n(h.begin() + static_cast<std::ptrdiff_t>(5 * j), 5,
                      embeddings.begin() + static_cast<std::ptrdiff_t>(5 * members[j]));
      }
      std::vector<double> all;
      for (const auto& g : gradients(model)) all.insert(all.end(), g.begin(), g.end());
      if (expected.empty()) {
        expected = embeddings;
        expected_gradients = all;
      }
      EXPECT_LT(relative_error(embeddings, expected), bound);
      EXPECT_LT(relative_error(all, expected_gradients), bound);
    }
  }
}

TEST(Encoder, DropoutActsInTrainingOnlyAndFollowsTheSample) {
  const ModelConfig config = noisy_config();
  TestEncoder model(config, DType::f64);
  const TestChunk chunk({{1, 4}, {2, 2}}, config.vocab);
  const TestChunk other({{7, 4}, {2, 2}}, config.vocab);
  const auto row = [](const Tensor& h, size_t s) {
    const std::vector<double> v = to_doubles(h);
    return std::vector<double>(v.begin() + static_cast<std::ptrdiff_t>(5 * s),
                               v.begin() + static_cast<std::ptrdiff_t>(5 * s + 5));
  };
  const Tensor trained = model.forward(chunk, true, false);
  const Tensor plain = model.forward(chunk, false, false);
  EXPECT_GT(relative_error(row(trained, 0), row(plain, 0)), 1e-2);
  EXPECT_LT(relative_error(row(model.forward(other, true, false), 1), row(trained, 1)), 1e-13);

  ModelConfig quiet = config;
  quiet.dropout = quiet.attention_dropout = 0;
  TestEncoder without(quiet, DType::f64);
  EXPECT_EQ(to_doubles(without.forward(chunk, true, false)), to_doubles(plain));
}

// The same text in the same chunk under another key: each place of each layer draws its own mask.
TEST(Encoder, EveryPlaceHasItsOwnMask) {
  Context context;
  context.training = true;
  std::vector<std::pair<uint64_t, uint64_t>> seen;
  for (uint64_t layer : {0, 1, 2})
    for (DropoutPlace place : {DropoutPlace::embeddings, DropoutPlace::attention_probabilities,
                               DropoutPlace::attention_output, DropoutPlace::feed_forward_output}) {
      const DropoutSite site = context.dropout(0.5, layer, place);
      EXPECT_EQ(site.probability, 0.5);
      const std::pair key{site.layer, site.site};
      EXPECT_EQ(std::count(seen.begin(), seen.end(), key), 0);
      seen.push_back(key);
    }
  context.training = false;
  EXPECT_EQ(context.dropout(0.5, 0, DropoutPlace::embeddings).probability, 0);
}

TEST(Encoder, SavedBytesAreExactOverTheOptions) {
  for (DType dtype : {DType::f32, DType::bf16, DType::f64})
    for (int64_t layers : {0, 1, 3})
      for (int64_t projection : {0, 5})
        for (ActivationKind activation : {ActivationKind::gelu, ActivationKind::swiglu})
          for (NormPosition position : {NormPosition::pre, NormPosition::post})
            for (NormKind norm : {NormKind::layer, NormKind::rms}) {
              ModelConfig config = tiny_config();
              config.layers = layers;
              config.projection = projection;
              config.activation = activation;
              config.norm_position = position;
              config.norm = norm;
              TestEncoder model(config, dtype);
              const TestChunk chunk({{1, 9}, {2, 2}, {3, 6}}, config.vocab);
              const size_t expected = model.encoder.saved_bytes(17, 3, dtype);
              model.forward(chunk);
              EXPECT_EQ(model.saved.bytes(), expected);
              EXPECT_EQ(model.saved.peak_bytes(), expected);
              EXPECT_EQ(model.scratch.bytes(), 0u);
              model.backward(chunk);
              EXPECT_EQ(model.saved.bytes(), 0u);
              EXPECT_EQ(model.saved.peak_bytes(), expected);
            }
}

TEST(Encoder, SavesTenWidthsATokenAndLayer) {
  ModelConfig config;
  config.vocab = 100;
  config.layers = 6;
  config.hidden = 384;
  config.heads = 12;
  ParameterSet parameters;
  const Encoder encoder(config, "e", parameters);
  // qkv 3, heads 1, two outputs of blocks 2, feed-forward 4; and a log-sum-exp a head.
  EXPECT_EQ(encoder.saved_bytes(1024, 32, DType::f32), size_t{6} * 1024 * (10 * 384 + 12) * 4);
  EXPECT_EQ(encoder.saved_bytes(1024, 32, DType::bf16), size_t{6} * 1024 * (10 * 384 * 2 + 12 * 4));
  EXPECT_EQ(encoder.forward_flops(std::vector<int64_t>{200, 300, 500}),
            6.0 * (2.0 * 1000 * 12 * 384 * 384 + 4.0 * 380000 * 384));
  // Two layers see the whole, four see 64 tokens on either side: 129 keys, fewer at both ends.
  config.position = PositionKind::rotary;
  config.local_attention = 128;
  const Encoder local(config, "l", parameters);
  const double pairs = 2 * (380000) + 4 * (1000 * 129 - 3 * 64 * 65);
  EXPECT_EQ(local.forward_flops(std::vector<int64_t>{200, 300, 500}),
            6.0 * (2.0 * 1000 * 12 * 384 * 384) + 4.0 * pairs * 384);
  EXPECT_EQ(local.forward_flops(std::vector<int64_t>{30, 65}),
            6.0 * (2.0 * 95 * 12 * 384 * 384 + 4.0 * (900 + 4225) * 384));
}

TEST(Encoder, AddsToTheSinksWithTheirScales) {
  const ModelConfig config = noisy_config();
  const TestChunk chunk = tiny_chunk(config);
  TestEncoder plain(config, DType::f64), scaled(config, DType::f64, 0.035);
  for (Tensor& sink : scaled.sinks)
    for (int64_t i = 0; i < sink.elements(); ++i) set(sink, i, 2.5 + static_cast<double>(i));
  for (TestEncoder* model : {&plain, &scaled}) {
    model->forward(chunk);
    model->backward(chunk);
  }
  for (size_t p = 0; p < plain.sinks.size(); ++p)
    for (int64_t i = 0; i < plain.sinks[p].elements(); ++i)
      EXPECT_NEAR(get(scaled.sinks[p], i),
                  2.5 + static_cast<double>(i) + 0.035 * get(plain.sinks[p], i), 1e-12)
          << plain.parameters[p].name;
}

TEST(Encoder, FrozenParametersTakeNoGradientAndChangeNoOther) {
  const ModelConfig config = noisy_config();
  const TestChunk chunk = tiny_chunk(config);
  TestEncoder whole(config, DType::f64);
  whole.forward(chunk);
  whole.backward(chunk);
  for (size_t f = 0; f < whole.parameters.size(); ++f) {
    TestEncoder model(config, DType::f64);
    model.parameters[f].frozen = true;
    model.forward(chunk);
    model.backward(chunk);
    for (size_t p = 0; p < model.sinks.size(); ++p) {
      const std::vector<double> g = to_doubles(model.sinks[p]);
      const std::vector<double> expected =
          p == f ? std::vector<double>(g.size()) : to_doubles(whole.sinks[p]);
      EXPECT_EQ(g, expected) << model.parameters[p].name;
    }
  }
}

TEST(Encoder, LowerPrecisionsComeCloseToDouble) {
  const ModelConfig config = noisy_config();
  const TestChunk chunk = tiny_chunk(config);
  TestEncoder exact(config, DType::f64);
  const std::vector<double> h = to_doubles(exact.forward(chunk));
  exact.backward(chunk);
  for (const auto& [dtype, bound] : {std::pair{DType::f32, 2e-6}, std::pair{DType::bf16, 3e-2}}) {
    TestEncoder model(config, dtype);
    EXPECT_LT(relative_error(to_doubles(model.forward(chunk)), h), bound) << name_of(dtype);
    model.backward(chunk);
    for (size_t p = 0; p < model.sinks.size(); ++p)
      EXPECT_LT(relative_error(to_doubles(model.sinks[p]), to_doubles(exact.sinks[p])), 2 * bound)
          << model.parameters[p].name << " " << name_of(dtype);
  }
}

// The copies of a step are those of the weights when it began, until it is told that they change.
TEST(Encoder, CopiesOfAStepFollowTheWeights) {
  const ModelConfig config = tiny_config();
  const TestChunk chunk = tiny_chunk(config);
  TestEncoder model(config, DType::bf16);
  StepCopies copies(Device::cpu());
  const auto embed = [&](StepCopies* with) {
    Tensor h({chunk.view().sequences(), model.encoder.embedding_size()}, DType::f32);
    Context context = model.context(chunk, false, false);
    context.copies = with;
    model.encoder.forward(context, h);
    return to_doubles(h);
  };
  const std::vector<double> before = embed(&copies);
  // Biases are rounded as well, and that is all that differs.
  EXPECT_LT(relative_error(before, embed(nullptr)), 0.02);
  fill_parameters(model.parameters, 0.1);
  const std::vector<double> stale = embed(&copies);
  copies.forget();
  const std::vector<double> after = embed(&copies);
  EXPECT_LT(relative_error(after, embed(nullptr)), 0.02);
  EXPECT_GT(relative_error(after, stale), 0.05);
  EXPECT_GT(StepCopies::bytes_for(model.parameters, DType::bf16), 0u);
  EXPECT_EQ(StepCopies::bytes_for(model.parameters, DType::f32), 0u);
}

TEST(Encoder, BackwardWithoutItsForwardIsRefused) {
  const ModelConfig config = noisy_config();
  const TestChunk chunk = tiny_chunk(config);
  TestEncoder model(config, DType::f64), other(config, DType::f64);
  EXPECT_THROW(model.backward(chunk), InternalError);
  model.forward(chunk);
  model.saved.push(&model, {1}, DType::f32);
  EXPECT_THROW(model.backward(chunk), InternalError);
  Context inference = model.context(chunk, true, false);
  Tensor dh({3, 5}, DType::f64), narrow({3, 4}, DType::f64), f32({3, 5}, DType::f32);
  EXPECT_THROW(model.encoder.backward(inference, dh), InternalError);
  EXPECT_THROW(model.encoder.forward(inference, narrow), InternalError);
  EXPECT_THROW(model.encoder.forward(inference, f32), InternalError);
}

std::vector<std::string> names_of(const ModelConfig& config) {
  ParameterSet parameters;
  const Encoder encoder(config, "query", parameters);
  std::vector<std::string> names;
  for (const Parameter& p : parameters) names.push_back(p.name);
  return names;
}

TEST(Encoder, NamesOfItsParameters) {
  ModelConfig config = tiny_config();
  config.layers = 2;
  config.bias = false;
  config.projection = 5;
  EXPECT_EQ(names_of(config),
            (std::vector<std::string>{
                "query.embeddings.tokens", "query.embeddings.positions",
                "query.embeddings.norm.gain", "query.layers.0.attention.qkv.weight",
                "query.layers.0.attention.output.weight", "query.layers.0.feed_forward.norm.gain",
                "query.layers.0.feed_forward.up.weight", "query.layers.0.feed_forward.down.weight",
                "query.layers.1.attention.norm.gain", "query.layers.1.attention.qkv.weight",
                "query.layers.1.attention.output.weight", "query.layers.1.feed_forward.norm.gain",
                "query.layers.1.feed_forward.up.weight", "query.layers.1.feed_forward.down.weight",
                "query.norm.gain", "query.projection.weight"}));
  config.layers = 1;
  config.projection = 0;
  config.norm_position = NormPosition::post;
  config.bias = config.key_bias = true;
  EXPECT_EQ(
      names_of(config),
      (std::vector<std::string>{
          "query.embeddings.tokens", "query.embeddings.positions", "query.embeddings.norm.gain",
          "query.embeddings.norm.bias", "query.layers.0.attention.qkv.weight",
          "query.layers.0.attention.qkv.bias", "query.layers.0.attention.key.bias",
          "query.layers.0.attention.output.weight", "query.layers.0.attention.output.bias",
          "query.layers.0.attention.norm.gain", "query.layers.0.attention.norm.bias",
          "query.layers.0.feed_forward.up.weight", "query.layers.0.feed_forward.up.bias",
          "query.layers.0.feed_forward.down.weight", "query.layers.0.feed_forward.down.bias",
          "query.layers.0.feed_forward.norm.gain", "query.layers.0.feed_forward.norm.bias"}));
  config.layers = 0;
  EXPECT_EQ(names_of(config), std::vector<std::string>{"query.embeddings.tokens"});
}

TEST(Encoder, ShapesRolesAndShardsOfItsParameters) {
  ModelConfig config = tiny_config();
  config.activation = ActivationKind::swiglu;
  config.projection = 5;
  config.key_bias = true;
  ParameterSet parameters;
  Encoder encoder(config, "e", parameters);
  const auto describe = [&](const std::string& name) {
    const Parameter* p = parameters.find("e." + name);
    if (p == nullptr) return name + " is missing";
    std::string text = name_of(p->kind);
    for (size_t i = 0; i < p->axes.size(); ++i)
      text += fmt::format(" {}{}{}", p->axes[i].size, name_of(p->axes[i].role),
                          p->sharding.axis == static_cast<int>(i) ? "/tp" : "");
    return text + (p->zero_gradient ? " zero" : "");
  };
  EXPECT_EQ(describe("embeddings.tokens"), "embedding 13vocab/tp 8model");
  EXPECT_EQ(describe("embeddings.positions"), "embedding 9position 8model");
  EXPECT_EQ(describe("embeddings.norm.gain"), "gain 8model");
  const std::string layer = "layers.0.";
  EXPECT_EQ(describe(layer + "attention.qkv.weight"), "weight 3fixed 2heads/tp 6head 8model");
  EXPECT_EQ(describe(layer + "attention.qkv.bias"), "bias 2fixed 2heads/tp 6head");
  EXPECT_EQ(describe(layer + "attention.key.bias"), "bias 2heads/tp 6head zero");
  EXPECT_EQ(describe(layer + "attention.output.weight"), "weight 8model 2heads/tp 6head");
  EXPECT_EQ(describe(layer + "attention.output.bias"), "bias 8model");
  EXPECT_EQ(describe(layer + "feed_forward.up.weight"), "weight 2fixed 12ffn/tp 8model");
  EXPECT_EQ(describe(layer + "feed_forward.up.bias"), "bias 2fixed 12ffn/tp");
  EXPECT_EQ(describe(layer + "feed_forward.down.weight"), "weight 8model 12ffn/tp");
  EXPECT_EQ(describe("projection.weight"), "weight 5projection 8model");
  EXPECT_EQ(&encoder.token_table(), parameters.find("e.embeddings.tokens"));
  EXPECT_EQ(encoder.position_table(), parameters.find("e.embeddings.positions"));
  config.layers = 0;
  EXPECT_EQ(Encoder(config, "static", parameters).position_table(), nullptr);
}

TEST(Encoder, InitialValues) {
  ModelConfig config;
  config.vocab = 500;
  config.layers = 2;
  config.embedding_std = 0.05;
  ParameterSet parameters;
  const Encoder encoder(config, "e", parameters);
  parameters.allocate(DType::f32, Device::cpu(), 0, 1);
  parameters.initialise(1, 0, 1);
  const auto deviation = [&](const std::string& name) {
    double sum = 0;
    const std::vector<double> v = to_doubles(parameters.find("e." + name)->value.view());
    for (double x : v) sum += x * x;
    return std::sqrt(sum / static_cast<double>(v.size()));
  };
  EXPECT_NEAR(deviation("embeddings.tokens"), 0.05, 0.001);
  EXPECT_NEAR(deviation("layers.0.attention.qkv.weight"), 0.02, 0.0005);
  EXPECT_NEAR(deviation("layers.0.attention.output.weight"), 0.01, 0.0005);
  EXPECT_NEAR(deviation("layers.1.feed_forward.down.weight"), 0.01, 0.0005);
  EXPECT_EQ(deviation("layers.0.feed_forward.norm.gain"), 1);
  EXPECT_EQ(deviation("layers.0.feed_forward.up.bias"), 0);

  config.residual_init = 0.25;
  EXPECT_DOUBLE_EQ(config.residual_std(), 0.005);
}

TEST(Encoder, ConstantsReachTheComputation) {
  ModelConfig config = tiny_config();
  config.norm_position = NormPosition::post;
  const TestChunk chunk = tiny_chunk(config);
  TestEncoder model(config, DType::f64);
  const std::vector<double> h = to_doubles(model.forward(chunk, false, false));
  const std::vector<ModelConstant> constants = model.encoder.constants();
  ASSERT_EQ(constants.size(), 12u);  // 5 norms of two, 2 attentions
  EXPECT_EQ(constants[0].name, "encoder.embeddings.norm.eps");
  EXPECT_EQ(constants[1].name, "encoder.embeddings.norm.statistics_width");
  EXPECT_EQ(constants[8].name, "encoder.layers.1.feed_forward.norm.eps");
  EXPECT_EQ(constants[11].name, "encoder.layers.1.attention.scale");
  EXPECT_DOUBLE_EQ(*constants[11].value, 1 / std::sqrt(6.0));
  for (const ModelConstant& constant : constants) {
    const double before = *constant.value;
    *constant.value *= constant.kind == ConstantKind::norm_statistics_width ? 0.5 : 2;
    EXPECT_GT(relative_error(to_doubles(model.forward(chunk, false, false)), h), 1e-6)
        << constant.name;
    *constant.value = before;
  }
}

TEST(Encoder, RefusesOptionsThatDoNotFit) {
  const auto message = [](auto change) -> std::string {
    ModelConfig config = tiny_config();
    change(config);
    ParameterSet parameters;
    try {
      const Encoder encoder(config, "e", parameters);
    } catch (const UsageError& e) {
      return e.what();
    }
    return "accepted";
  };
  EXPECT_EQ(message([](ModelConfig&) {}), "accepted");
  EXPECT_NE(message([](ModelConfig& c) { c.hidden = 0; }).find("model.hidden"), std::string::npos);
  EXPECT_NE(message([](ModelConfig& c) { c.vocab = 0; }).find("vocabulary"), std::string::npos);
  EXPECT_NE(message([](ModelConfig& c) { c.layers = -1; }).find("model.layers"), std::string::npos);
  EXPECT_NE(message([](ModelConfig& c) { c.heads = 3, c.head_size = 0; }).find("model.heads"),
            std::string::npos);
  EXPECT_NE(message([](ModelConfig& c) {
              c.position = PositionKind::rotary, c.head_size = 5;
            }).find("model.head_size"),
            std::string::npos);
  EXPECT_NE(message([](ModelConfig& c) { c.rotary_size = 6, c.head_size = 4; }).find("rotary_size"),
            std::string::npos);
  EXPECT_NE(message([](ModelConfig& c) { c.local_attention = 4; }).find("model.position rotary"),
            std::string::npos);
  EXPECT_NE(message([](ModelConfig& c) { c.local_attention = 1; }).find("model.local_attention"),
            std::string::npos);
  EXPECT_NE(message([](ModelConfig& c) { c.global_every = 0; }).find("model.global_every"),
            std::string::npos);
  EXPECT_NE(message([](ModelConfig& c) { c.norm_gate = true; }).find("model.norm_gate"),
            std::string::npos);
  EXPECT_NE(message([](ModelConfig& c) { c.bias = false, c.key_bias = true; }).find("key_bias"),
            std::string::npos);
  // A static model has no heads to fit.
  EXPECT_EQ(message([](ModelConfig& c) { c.layers = 0, c.heads = 3, c.head_size = 0; }),
            "accepted");
}

TEST(ModelConfig, DefaultsOfTheFeedForwardWidth) {
  ModelConfig config;
  config.hidden = 384;
  EXPECT_EQ(config.resolved_ffn(), 1536);
  config.activation = ActivationKind::geglu;
  EXPECT_EQ(config.resolved_ffn(), 1024);
  config.hidden = 256;
  EXPECT_EQ(config.resolved_ffn(), 704);  // 682.7 rounded up to 64
  config.ffn = 100;
  EXPECT_EQ(config.resolved_ffn(), 100);
}

std::vector<std::string> listed(const ModelConfig& config, DType dtype, DType sinks) {
  ParameterSet parameters;
  const Encoder encoder(config, "e", parameters);
  ProductListing of;
  of.tokens = 48;
  of.context.dtype = dtype;
  of.sinks = sinks;
  std::vector<Product> products;
  encoder.list_products(of, products);
  std::vector<std::string> texts;
  for (const Product& product : products) texts.push_back(to_text(product));
  return texts;
}

// For the choice of algorithms: as `forward` and `backward` of attention and feed-forward network
// compute them, the two linear layers of each in turn.
TEST(Encoder, ListsItsProducts) {
  ModelConfig config = tiny_config();
  config.layers = 1;
  config.hidden = 6;
  config.heads = 2;
  config.head_size = 5;
  config.ffn = 16;
  config.activation = ActivationKind::gelu;
  config.norm_position = NormPosition::post;
  config.bias = true;
  config.key_bias = false;
  EXPECT_EQ(
      listed(config, DType::f32, DType::f32),
      (std::vector<std::string>{"nt 48 x 30 x 6 f32 to f32 bias", "tn 30 x 6 x 48 f32 to f32 adds",
                                "nn 48 x 6 x 30 f32 to f32 adds", "nt 48 x 6 x 10 f32 to f32 bias",
                                "tn 6 x 10 x 48 f32 to f32 adds", "nn 48 x 10 x 6 f32 to f32",
                                "nt 48 x 16 x 6 f32 to f32 bias", "tn 16 x 6 x 48 f32 to f32 adds",
                                "nn 48 x 6 x 16 f32 to f32 adds", "nt 48 x 6 x 16 f32 to f32 bias",
                                "tn 6 x 16 x 48 f32 to f32 adds", "nn 48 x 16 x 6 f32 to f32"}));
  // The first block has no norm before it, the second one has; gated, without biases, in bf16.
  config.norm_position = NormPosition::pre;
  config.activation = ActivationKind::swiglu;
  config.bias = false;
  const std::vector<std::string> bf16 = listed(config, DType::bf16, DType::f32);
  ASSERT_EQ(bf16.size(), 12u);
  EXPECT_EQ(bf16[0], "nt 48 x 30 x 6 bf16 to bf16");
  EXPECT_EQ(bf16[1], "tn 30 x 6 x 48 bf16 to f32 adds");
  EXPECT_EQ(bf16[2], "nn 48 x 6 x 30 bf16 to bf16 adds");
  EXPECT_EQ(bf16[6], "nt 48 x 32 x 6 bf16 to bf16");
  EXPECT_EQ(bf16[8], "nn 48 x 6 x 32 bf16 to bf16");
  EXPECT_EQ(listed(config, DType::bf16, DType::bf16)[1], "tn 30 x 6 x 48 bf16 to bf16 adds");
}

}  // namespace
}  // namespace amur::test
