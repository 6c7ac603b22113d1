// Pretrained models: their embeddings, through every way in and out, against those that
// sentence-transformers computed (make_fixtures.py); what is refused; damaged folders.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <fstream>
#include <functional>
#include <iterator>
#include <nlohmann/json.hpp>

#include "src/core/random.h"
#include "src/train/data/sentencepiece_model.h"
#include "src/train/growth/grow_checkpoint.h"
#include "src/train/huggingface/export.h"
#include "src/train/huggingface/import.h"
#include "src/train/huggingface/pretrained_model.h"
#include "src/train/session.h"
#include "src/train/text_embedder.h"
#include "tests/support/mpi_runtime.h"
#include "tests/unit/checkpoint/fixture.h"

namespace amur {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;
using Json = nlohmann::json;

constexpr double kCosine = 0.999999, kDifference = 2e-6;

std::string fixture(const std::string& name) {
  return fmt::format("{}/fixtures/{}", AMUR_TEST_DATA, name);
}

std::string content(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

// All files of a folder by their names in it.
std::map<std::string, std::string> contents(const fs::path& folder) {
  std::map<std::string, std::string> files;
  for (const auto& entry : fs::recursive_directory_iterator(folder))
    if (entry.is_regular_file())
      files[fs::relative(entry.path(), folder).string()] = content(entry.path());
  return files;
}

class Pretrained : public ::testing::TestWithParam<const char*> {
 protected:
  Runtime& runtime = test::runtime();
  Communicator& world() { return grid.world(); }
  ProcessGrid grid{runtime, {runtime.size(), 1}};
  ProcessGrid shared{runtime, {1, runtime.size()}};  // all ranks share a model
  test::ScratchFolder folder{&grid.world()};
  Json expected = Json::parse(content(fixture(GetParam()) + "/expected.json"));
  std::vector<std::string> texts = expected["texts"];

  std::vector<float> embed(const std::string& path, int tower, ProcessGrid& on) {
    TrainedModel model = load_trained_model(path, {}, on);
    const SourceConfig& source = model.config.data.sources.at(0);
    std::vector<std::string> prefixed;
    for (const std::string& text : texts)
      prefixed.push_back((tower ? source.document_prefix : source.query_prefix) + text);
    TextEmbedder embedder(*model.model, *model.tokenizer, model.config, on.dp(), runtime);
    const Tensor rows = embedder.embed(prefixed, tower);
    return {rows.as<float>(), rows.as<float>() + rows.elements()};
  }

  void expect_embeddings(const std::string& path, ProcessGrid& on, double bound = kDifference) {
    for (int tower = 0; tower < 2; ++tower) {
      const Json& rows = expected[tower ? "document" : "query"];
      const std::vector<float> ours = embed(path, tower, on);
      const size_t width = rows[0].size();
      ASSERT_EQ(ours.size(), texts.size() * width);
      for (size_t i = 0; i < texts.size(); ++i) {
        double cosine = 0, difference = 0;
        for (size_t j = 0; j < width; ++j) {
          const double a = ours[i * width + j], b = rows[i][j].get<double>();
          cosine += a * b;
          difference = std::max(difference, std::abs(a - b));
        }
        EXPECT_GE(cosine, kCosine) << texts[i];
        EXPECT_LE(difference, bound) << texts[i];
      }
    }
  }

  // The largest difference from what sentence-transformers computed of the fixture.
  double difference_of_documents(const std::string& path) {
    const std::vector<float> ours = embed(path, 1, grid);
    const Json& rows = expected["document"];
    const size_t width = rows[0].size();
    double largest = 0;
    for (size_t i = 0; i < ours.size(); ++i)
      largest = std::max(largest, std::abs(ours[i] - rows[i / width][i % width].get<double>()));
    return largest;
  }

  std::string imported(const std::string& from, const std::string& name) {
    ImportOptions options;
    options.folder = from;
    options.output = folder.file(name);
    import_pretrained(options, grid, runtime);
    return options.output;
  }
  std::string widened(const std::string& from, const GrowthOptions& larger,
                      const std::string& name) {
    CheckpointInfo info = Checkpoint::read_info(from);
    const Config saved = parse_config(info.config_yaml, from, {});
    const auto tokenizer = tokenizer_of(info, from);
    Config config = saved;
    config.model.vocab = tokenizer->vocab_size();
    const Growth growth(config.model, larger);
    GrownCheckpoint grown(from, info, config, growth, grid, runtime);
    GrownCheckpoint::Content with;
    with.ancestor = ancestor_text(from, growth, 0, 1, 2);
    with.info = info;
    with.info.config_yaml = to_yaml(grown_config(saved, growth));
    const std::string wide = folder.file(name);
    EXPECT_TRUE(grown.grow(wide, with, probe_pairs(""), *tokenizer, grid).written);
    return wide;
  }
  std::string exported(const std::string& from, const std::string& name) {
    ExportOptions options;
    options.checkpoint = from;
    options.folder = folder.file(name);
    export_pretrained(options, world(), runtime);
    return options.folder;
  }
};

TEST_P(Pretrained, TokensAndEmbeddingsAreThoseOfSentenceTransformers) {
  const PretrainedModel model(fixture(GetParam()));
  for (size_t i = 0; i < texts.size(); ++i) {
    std::vector<int32_t> ids;
    model.tokenizer().encode(texts[i], model.config().model.max_length, ids);
    EXPECT_EQ(Json(ids), expected["ids"][i]) << texts[i];
  }
  expect_embeddings(fixture(GetParam()), grid);
  expect_embeddings(fixture(GetParam()), shared);
}

TEST_P(Pretrained, ImportExportImportIsTheSameToTheBit) {
  const std::string first = imported(fixture(GetParam()), "first.h5");
  expect_embeddings(first, grid);
  expect_embeddings(first, shared);
  const std::string back = exported(first, "back");
  expect_embeddings(back, grid);
  const std::string second = imported(back, "second.h5");
  const std::string again = exported(second, "again");
  if (world().rank() > 0) return;
  const CheckpointInfo a = Checkpoint::read_info(first), b = Checkpoint::read_info(second);
  EXPECT_EQ(a.config_yaml, b.config_yaml);
  EXPECT_EQ(a.tokenizer, b.tokenizer);
  EXPECT_EQ(a.constants, b.constants);
  if (std::string_view(GetParam()) == "bert") {
    // Of halves there are floats now, and the newest files do not say the length.
    EXPECT_TRUE(a.carried == b.carried);
  }
  const auto one = contents(fixture(GetParam()));
  auto two = contents(back), three = contents(again);
  two.erase("README.md");  // tells where it came from
  three.erase("README.md");
  EXPECT_TRUE(two == three) << "the second export is another one";
  EXPECT_TRUE(two.at("tokenizer.json") == one.at("tokenizer.json"));
  for (const char* file : {"tokenizer_config.json", "config_sentence_transformers.json"})
    EXPECT_EQ(one.at(file), two.at(file)) << file;
  // Every tensor that was there is there, with its values.
  const Safetensors before(one.at("model.safetensors"), "before"),
      after(two.at("model.safetensors"), "after");
  ASSERT_EQ(before.tensors().size(), after.tensors().size());
  for (const Safetensors::Entry& entry : before.tensors()) {
    const Safetensors::Entry* now = after.find(entry.name);
    ASSERT_NE(now, nullptr) << entry.name;
    ASSERT_EQ(now->shape, entry.shape) << entry.name;
    std::vector<float> x(static_cast<size_t>(entry.elements())), y(x.size());
    before.read(entry, 0, TensorView(x.data(), Shape{entry.elements()}, DType::f32));
    after.read(*now, 0, TensorView(y.data(), Shape{entry.elements()}, DType::f32));
    EXPECT_EQ(x, y) << entry.name;
  }
}

TEST_P(Pretrained, AWidenedModelIsHandedOver) {
  const std::string small = imported(fixture(GetParam()), "small.h5");
  GrowthOptions larger;
  larger.hidden = 48;
  larger.heads = 6;
  larger.ffn = 80;
  larger.projection = true;
  const std::string out = exported(widened(small, larger, "wide.h5"), "wide");
  expect_embeddings(out, grid, 5e-6);
  const std::string back = imported(out, "back.h5");
  expect_embeddings(back, shared, 5e-6);
  const PretrainedModel model(out);
  EXPECT_EQ(model.config().model.hidden, 48);
  EXPECT_EQ(model.config().model.projection, static_cast<int64_t>(expected["query"][0].size()));
}

TEST_P(Pretrained, NothingIsReplacedUnasked) {
  const std::string file = imported(fixture(GetParam()), "a.h5");
  EXPECT_THROW(imported(fixture(GetParam()), "a.h5"), UsageError);
  exported(file, "out");
  EXPECT_THROW(exported(file, "out"), UsageError);
  ExportOptions options;
  options.checkpoint = file;
  options.folder = folder.file("out");
  options.force = true;
  EXPECT_NO_THROW(export_pretrained(options, world(), runtime));
  EXPECT_FALSE(fs::exists(options.folder + ".amur-tmp"));
  EXPECT_FALSE(fs::exists(options.folder + ".amur-old"));
}

// A ModernBERT whose local layers see less than its texts and have another rotary base.
class LocalLayers : public Pretrained {
 protected:
  Json config() { return Json::parse(content(fixture(GetParam()) + "/config.json")); }
  // The fixture with another config.json.
  std::string changed(const std::string& name, const Json& config) {
    const std::string path = folder.file(name);
    if (world().rank() == 0) {
      fs::copy(fixture(GetParam()), path, fs::copy_options::recursive);
      std::ofstream(path + "/config.json") << config.dump(2);
    }
    world().barrier();
    return path;
  }
};

// As versions before 5 of transformers write it, the published checkpoints among them.
void spell_as_before(Json& json) {
  const Json rope = json["rope_parameters"];
  for (const char* key : {"layer_types", "rope_parameters"}) json.erase(key);
  json["global_attn_every_n_layers"] = 3;
  json["global_rope_theta"] = rope["full_attention"]["rope_theta"];
  json["local_rope_theta"] = rope["sliding_attention"]["rope_theta"];
}

TEST_P(LocalLayers, AnotherWindowBaseOrKindIsAnotherModel) {
  ASSERT_LE(difference_of_documents(changed("same", config())), kDifference);
  const auto difference = [&](const std::string& name, const std::function<void(Json&)>& change) {
    Json json = config();
    change(json);
    return difference_of_documents(changed(name, json));
  };
  // The window is left out; it is one token narrower.
  EXPECT_GT(difference("whole", [](Json& json) { json["local_attention"] = 64; }), 1e-3);
  EXPECT_GT(difference("narrow", [](Json& json) { json["local_attention"] = 6; }), 1e-3);
  EXPECT_GT(difference("swapped",
                       [](Json& json) {
                         auto& rope = json["rope_parameters"];
                         std::swap(rope["full_attention"], rope["sliding_attention"]);
                       }),
            1e-3);
  EXPECT_GT(difference("one base",
                       [](Json& json) {
                         json["rope_parameters"]["sliding_attention"]["rope_theta"] = 160000;
                       }),
            1e-3);
  EXPECT_GT(difference("other layers",
                       [](Json& json) {
                         spell_as_before(json);
                         json["global_attn_every_n_layers"] = 2;
                       }),
            1e-3);
}

TEST_P(LocalLayers, BothSpellingsComeInGrowDeeperAndGoOut) {
  for (const bool before : {false, true}) {
    Json json = config();
    if (before) spell_as_before(json);
    const std::string name = before ? "before" : "now";
    const std::string in = imported(changed(name, json), name + ".h5");
    expect_embeddings(in, shared);
    const std::string same = exported(in, name + "-out");
    const Json out = Json::parse(content(same + "/config.json"));
    for (const char* key : {"layer_types", "rope_parameters", "global_attn_every_n_layers",
                            "global_rope_theta", "local_rope_theta", "local_attention"})
      EXPECT_EQ(out.value(key, Json()), json.value(key, Json())) << key;

    GrowthOptions deeper;
    deeper.layers = 9;
    const std::string deep = exported(widened(in, deeper, name + "-deep.h5"), name + "-deep");
    expect_embeddings(deep, grid, 5e-6);
    const Json grown = Json::parse(content(deep + "/config.json"));
    EXPECT_EQ(grown.contains("layer_types"), !before);
    const ModelConfig model = read_encoder(grown.dump(), "config.json").model;
    for (int64_t i = 0; i < 9; ++i) {
      EXPECT_EQ(model.window_of(i), i % 3 == 0 ? 0 : 4);
      EXPECT_EQ(model.rotary_base_of(i), i % 3 == 0 ? 160000 : 10000);
    }
  }
}

// Files in memory, some of them changed.
class Folder {
 public:
  explicit Folder(const std::string& name) : files_(contents(fixture(name))) {
    files_.erase("expected.json");
  }
  const std::map<std::string, std::string>& files() const { return files_; }
  void set(const std::string& file, std::string text) { files_[file] = std::move(text); }
  void set(const std::string& file, const char* key, const Json& value) {
    Json json = Json::parse(files_.at(file));
    json[key] = value;
    files_[file] = json.dump();
  }
  void remove(const std::string& file) { files_.erase(file); }
  // What opening it fails with; "" where it is read to its end.
  std::string problem() const {
    // Exactly as long as they are, so that a sanitizer sees a read behind the end.
    std::map<std::string, std::vector<char>> copies;
    for (const auto& [name, text] : files_) copies[name] = {text.begin(), text.end()};
    const PretrainedModel::Files lookup =
        [&](const std::string& file) -> std::optional<std::string_view> {
      const auto it = copies.find(file);
      if (it == copies.end()) return std::nullopt;
      return std::string_view(it->second.data(), it->second.size());
    };
    try {
      const PretrainedModel model(lookup, "folder");
      const auto outline = EmbeddingModel::outline(model.config(), Precision::fp32);
      for (const Parameter& p : outline->parameters()) {
        Tensor values(p.global_shape(), DType::f32);
        model.read(p, slab_of(p, 0, 1), values);
      }
      for (const auto& [name, bytes] : model.carried()) EXPECT_FALSE(bytes.empty()) << name;
    } catch (const Error& e) {
      EXPECT_TRUE(e.exit_code() == kExitUsage || e.exit_code() == kExitIo) << e.what();
      return e.what();
    }
    return "";
  }

 private:
  std::map<std::string, std::string> files_;
};

TEST(PretrainedFolder, WhatAmurDoesNotComputeIsRefusedByName) {
  const auto config = [](const char* key, const Json& value) {
    Folder folder("bert");
    folder.set("config.json", key, value);
    return folder.problem();
  };
  EXPECT_EQ(config("position_embedding_type", "absolute"), "");
  EXPECT_EQ(
      config("position_embedding_type", "relative_key"),
      "folder/config.json: position_embedding_type is \"relative_key\", which is not supported: "
      "it must be \"absolute\" or left out");
  EXPECT_THAT(config("hidden_act", "silu"),
              HasSubstr("hidden_act is \"silu\", which is not supported"));
  EXPECT_THAT(config("is_decoder", true), HasSubstr("is_decoder is true, which is not supported"));
  EXPECT_THAT(config("model_type", "mpnet"),
              HasSubstr("model_type is \"mpnet\", which is not supported"));
  EXPECT_THAT(config("pruned_heads", {{"1", {0}}}), HasSubstr("pruned_heads"));
  EXPECT_THAT(config("hidden_size", 25), HasSubstr("num_attention_heads 3 does not divide"));
  EXPECT_THAT(config("hidden_size", -24),
              HasSubstr("hidden_size is no whole number from 1 to 65536: -24"));
  EXPECT_THAT(config("num_hidden_layers", 3),
              HasSubstr("missing: encoder.layer.2.attention.self.query.weight [24, 24]"));
  EXPECT_THAT(config("intermediate_size", 41), HasSubstr("is [40, 24], [41, 24] is wanted"));
  EXPECT_THAT(config("vocab_size", 129), HasSubstr("the tokenizer has 130 tokens"));
  EXPECT_THAT(config("layer_norm_eps", "x"), HasSubstr("layer_norm_eps"));

  const auto changed = [](const char* name, const char* file, const char* key, const Json& value) {
    Folder folder(name);
    folder.set(file, key, value);
    return folder.problem();
  };
  EXPECT_THAT(changed("bert", "1_Pooling/config.json", "pooling_mode_max_tokens", true),
              HasSubstr("pooling_mode_max_tokens is true, which is not supported"));
  EXPECT_THAT(changed("bert", "sentence_bert_config.json", "do_lower_case", true),
              HasSubstr("do_lower_case is true"));
  EXPECT_THAT(changed("distilbert", "1_Pooling/config.json", "pooling_mode", "lasttoken"),
              HasSubstr("pooling_mode is \"lasttoken\""));
  EXPECT_THAT(changed("distilbert", "1_Pooling/config.json", "include_prompt", false),
              HasSubstr("include_prompt is false"));
  EXPECT_THAT(changed("distilbert", "2_Dense/config.json", "bias", true),
              HasSubstr("bias is true"));
  EXPECT_THAT(changed("distilbert", "2_Dense/config.json", "activation_function",
                      "torch.nn.modules.activation.Tanh"),
              HasSubstr("activation_function"));
  EXPECT_THAT(changed("distilbert", "config.json", "sinusoidal_pos_embds", true),
              HasSubstr("sinusoidal_pos_embds is true"));
  for (const char* file : {"config.json", "model.safetensors", "1_Pooling/config.json"}) {
    Folder folder("bert");
    folder.remove(file);
    EXPECT_THAT(folder.problem(), HasSubstr(fmt::format("folder/{} is missing", file)));
  }
  Folder folder("bert");
  folder.set("modules.json", R"([{"type":"a.Transformer","path":"../x"}])");
  EXPECT_THAT(folder.problem(), HasSubstr("leads out of the folder"));
  folder.set("modules.json", R"([{"type":"a.Pooling","path":"1_Pooling"}])");
  EXPECT_THAT(folder.problem(), HasSubstr("the modules must be Transformer, Pooling"));
  folder.set("modules.json", std::string(100000, '['));
  EXPECT_THAT(folder.problem(), HasSubstr("nested deeper than 64"));
}

TEST(PretrainedFolder, WhatAModernBertMaySay) {
  const auto problem = [](const std::function<void(Json&)>& change) {
    Folder folder("modernbert");
    Json json = Json::parse(folder.files().at("config.json"));
    change(json);
    folder.set("config.json", json.dump());
    return folder.problem();
  };
  EXPECT_EQ(problem(spell_as_before), "");
  EXPECT_THAT(problem([](Json& json) { json["local_attention"] = 1; }),
              HasSubstr("local_attention is no whole number from 2 to"));
  EXPECT_THAT(problem([](Json& json) { json["layer_types"][1] = "chunked_attention"; }),
              HasSubstr("layer_types"));
  for (const size_t layer : {0, 1})
    EXPECT_THAT(
        problem([&](Json& json) {
          json["layer_types"][layer] = json["layer_types"][layer] == "full_attention"
                                           ? "sliding_attention"
                                           : "full_attention";
        }),
        HasSubstr("which is not supported: layers 0, n, 2n, .. must be \"full_attention\""));
  EXPECT_THAT(problem([](Json& json) { json["layer_types"].erase(0); }),
              HasSubstr("4 layers are wanted"));
  EXPECT_THAT(problem([](Json& json) { json["rope_parameters"].erase("sliding_attention"); }),
              HasSubstr("an entry for \"sliding_attention\" is wanted"));
  // No layer is local: nothing is asked of them.
  Folder whole("modernbert");
  whole.set("config.json", "layer_types", Json(4, "full_attention"));
  EXPECT_EQ(whole.problem(), "");
  const ModelConfig model = read_encoder(whole.files().at("config.json"), "config.json").model;
  EXPECT_EQ(model.local_attention, 0);
  EXPECT_EQ(model.rotary_base, 160000);
  EXPECT_THAT(
      problem([](Json& json) { json["rope_parameters"]["full_attention"]["rope_type"] = "yarn"; }),
      HasSubstr("rope_type is \"yarn\", which is not supported"));
  EXPECT_THAT(problem([](Json& json) {
                json["rope_scaling"] = {{"factor", 2}};
              }),
              HasSubstr("rope_scaling"));
  for (const char* key : {"norm_bias", "attention_bias", "mlp_bias"})
    EXPECT_THAT(problem([&](Json& json) { json[key] = true; }),
                HasSubstr(fmt::format("{} is true, which is not supported", key)));
  EXPECT_THAT(problem([](Json& json) { json["hidden_activation"] = "silu"; }),
              HasSubstr("hidden_activation is \"silu\", which is not supported"));
}

TEST(PretrainedFolder, OtherFormsOfTheSameModel) {
  Folder folder("bert");
  folder.remove("modules.json");  // mean pooling
  EXPECT_EQ(folder.problem(), "");
  folder.remove("tokenizer.json");  // vocab.txt
  EXPECT_EQ(folder.problem(), "");
  Folder pieces("xlm_roberta");
  pieces.remove("tokenizer.json");
  EXPECT_THAT(pieces.problem(), HasSubstr("sentencepiece.bpe.model too"));
  SentencePieceModel model;
  for (const char* text :
       {"<unk>", "<s>", "</s>", "\u2581", "a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k"})
    model.pieces.push_back({text, -1, SentencePieceModel::kNormal});
  pieces.set("sentencepiece.bpe.model", write_sentencepiece_model(model));
  EXPECT_EQ(pieces.problem(), "");
  // Shards, and names as of a model with a head.
  const Safetensors whole(folder.files().at("model.safetensors"), "whole");
  std::vector<SafetensorsInfo> infos[2];
  std::vector<std::string_view> bytes[2];
  Json map;
  for (size_t i = 0; i < whole.tensors().size(); ++i) {
    SafetensorsInfo info = whole.tensors()[i];
    info.name = "bert." + info.name;
    map[info.name] = fmt::format("part-{}.safetensors", i % 2);
    infos[i % 2].push_back(info);
    bytes[i % 2].push_back(whole.tensors()[i].bytes);
  }
  Folder sharded("bert");
  sharded.remove("model.safetensors");
  for (int i = 0; i < 2; ++i)
    sharded.set(fmt::format("part-{}.safetensors", i), safetensors_bytes(infos[i], bytes[i], {}));
  sharded.set("model.safetensors.index.json", Json{{"weight_map", map}}.dump());
  EXPECT_EQ(sharded.problem(), "");
  sharded.remove("part-1.safetensors");
  EXPECT_THAT(sharded.problem(), HasSubstr("part-1.safetensors is missing"));
}

TEST(PretrainedFolder, DamagedFoldersAreRefusedOrRead) {
  const char* asked = std::getenv("AMUR_MUTATIONS");
  const uint64_t mutations = asked ? std::strtoull(asked, nullptr, 10) : 300;
  const RandomKey key = RandomKey(11).fold(static_cast<uint64_t>(RandomPurpose::probe));
  constexpr std::string_view kUseful = "0123456789[]{}\",:-.e truefalsn\\\xff";
  constexpr const char* kFiles[] = {"config.json",
                                    "modules.json",
                                    "1_Pooling/config.json",
                                    "2_Dense/config.json",
                                    "sentence_bert_config.json",
                                    "config_sentence_transformers.json",
                                    "tokenizer_config.json"};
  constexpr const char* kFamilies[] = {"distilbert", "modernbert", "roberta", "xlm_roberta"};
  uint64_t refused = 0;
  for (uint64_t i = 0; i < mutations && !::testing::Test::HasFailure(); ++i) {
    const RandomKey draw = key.fold(i);
    uint64_t counter = 0;
    const auto below = [&](uint64_t n) { return draw.below(counter++, n); };
    Folder folder(kFamilies[below(std::size(kFamilies))]);
    std::string file = kFiles[below(std::size(kFiles))];
    if (!folder.files().contains(file)) file = "config.json";
    std::string text = folder.files().at(file);
    for (uint64_t edits = 1 + below(3); edits > 0 && !text.empty(); --edits) {
      const size_t at = below(text.size());
      switch (below(5)) {
        case 0:
          text[at] = kUseful[below(kUseful.size())];
          break;
        case 1:
          text.insert(at, 1, kUseful[below(kUseful.size())]);
          break;
        case 2:
          text.erase(at, 1 + below(4));
          break;
        case 3:
          text.insert(at, text.substr(below(text.size()), below(40)));
          break;
        default:
          text[at] = static_cast<char>(text[at] ^ (1 << below(8)));
      }
    }
    folder.set(file, text);
    refused += !folder.problem().empty();
    test_runtime().advance();
  }
  EXPECT_GT(refused, mutations / 3);
  EXPECT_LT(refused, mutations);
}

INSTANTIATE_TEST_SUITE_P(ModernBert, LocalLayers, ::testing::Values("modernbert"));

INSTANTIATE_TEST_SUITE_P(Families, Pretrained,
                         ::testing::Values("bert", "distilbert", "modernbert", "roberta",
                                           "xlm_roberta"),
                         [](const auto& family) { return std::string(family.param); });

}  // namespace
}  // namespace amur
