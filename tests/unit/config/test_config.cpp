#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <set>
#include <sstream>

#include "src/core/error.h"
#include "src/train/config/config_schema.h"

namespace amur {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

// A configuration without problems, to which the tests add.
constexpr const char* kSource = "data:\n  sources:\n    - format: trans-de-en\n";

Config parse(const std::string& yaml, const std::vector<std::string>& overrides = {}) {
  return parse_config(yaml, "x.yaml", overrides);
}

std::string problems_of(const std::string& yaml, const std::vector<std::string>& overrides = {}) {
  try {
    parse(yaml, overrides);
  } catch (const UsageError& e) {
    return e.what();
  }
  return "";
}

std::map<std::string, std::string> values_of(const Config& config) {
  std::map<std::string, std::string> values;
  config::for_each_value(config, [&](const std::string& key, const config::Key&,
                                     const std::string& yaml) { values[key] = yaml; });
  return values;
}

// One entry in every list, so that every declared key has a value.
Config config_with_lists() {
  Config config;
  for (const config::Group& group : config::schema())
    if (group.is_list()) group.resize(config, 1);
  return config;
}

// Number of members of an aggregate: the longest list of initialisers it takes.
struct Anything {
  template <class T>
  operator T() const;
};
template <class S, class... Members>
constexpr size_t members_of() {
  if constexpr (requires { S{Members{}..., Anything{}}; }) {
    return members_of<S, Members..., Anything>();
  } else {
    return sizeof...(Members);
  }
}

size_t declared(const std::string& group) {
  const config::Group* found = config::find_group(group);
  size_t lists = 0;
  for (const config::Group& other : config::schema())
    lists += other.is_list() && other.name.rfind(group + ".", 0) == 0;
  return found->keys.size() + lists;
}

TEST(Config, EveryMemberIsDeclared) {
  EXPECT_EQ(declared("model"), members_of<ModelConfig>() - 1);  // vocab is set from the vocabulary
  EXPECT_EQ(declared("data"), members_of<DataConfig>());
  EXPECT_EQ(declared("data.sources"), members_of<SourceConfig>());
  EXPECT_EQ(declared("loss"), members_of<LossConfig>());
  EXPECT_EQ(declared("optimizer"), members_of<OptimizerConfig>());
  EXPECT_EQ(declared("optimizer.groups"), members_of<ParameterGroup>());
  EXPECT_EQ(declared("optimizer.schedule_points"), 2u);
  EXPECT_EQ(declared("train"), members_of<TrainConfig>());
  EXPECT_EQ(declared("parallel"), members_of<ParallelConfig>());
  EXPECT_EQ(declared("checkpoint"), members_of<CheckpointConfig>());
  EXPECT_EQ(declared("eval"), members_of<EvalConfig>());
  EXPECT_EQ(declared("runtime"), members_of<RuntimeConfig>());
  size_t sections = 0;
  for (const config::Group& group : config::schema()) sections += !group.is_list();
  EXPECT_EQ(sections, members_of<Config>());
}

// A value of the key other than `old`: the first of some likely ones that it takes.
std::string another_value(const config::Group& group, const config::Key& key,
                          const std::string& old) {
  std::vector<std::string> likely = key.words;
  for (const char* text : {"0.75", "7", "48", "0.5", "600", "64KiB"}) likely.emplace_back(text);
  for (const std::string& text : likely) {
    Config scratch = config_with_lists();
    if (text != old && key.set(scratch, 0, text) && key.yaml(scratch, 0) != old) return text;
  }
  ADD_FAILURE() << group.name << "." << key.name << ": no other value found";
  return old;
}

TEST(Config, EveryKeyHasItsOwnMemberAndRoundTrips) {
  const auto defaults = values_of(config_with_lists());
  for (const config::Group& group : config::schema()) {
    for (const config::Key& key : group.keys) {
      std::string name = group.name + (group.is_list() ? ".0." : ".") + key.name;
      SCOPED_TRACE(name);
      Config changed = config_with_lists();
      std::string value = another_value(group, key, defaults.at(name));
      ASSERT_TRUE(key.set(changed, 0, value));
      Config back = config_with_lists();
      ASSERT_TRUE(key.set(back, 0, key.yaml(changed, 0)));
      EXPECT_EQ(values_of(back), values_of(changed));
      for (const auto& [other, text] : values_of(changed)) {
        if (other == name) {
          EXPECT_NE(text, defaults.at(other));
        } else {
          EXPECT_EQ(text, defaults.at(other)) << other << " moved too";
        }
      }
      auto differences = compare_configs(config_with_lists(), changed);
      ASSERT_EQ(differences.size(), 1u);
      EXPECT_EQ(differences[0].key, name);
      EXPECT_EQ(differences[0].fixed, key.on_resume == config::OnResume::fixed);
      EXPECT_FALSE(key.doc.empty());
    }
  }
}

TEST(Config, YamlRoundTripIsExact) {
  Config config = parse(kSource);
  config.optimizer.learning_rate = 0.1 + 0.2;
  config.train.epochs = 1.0 / 3;
  config.model.norm_eps = 1e-12;
  config.train.seed = (uint64_t{1} << 63) + 1;
  config.train.activation_budget = (int64_t{3} << 20) + 1;
  config.data.cache_dir = "a \"b\"\\c: #d\n\te\x01 \xc3\xa4";
  config.data.sources.resize(2);
  config.data.sources[0].query_prefix = "query: ";
  config.data.sources[1].format = SourceFormat::jsonl;
  config.data.sources[1].path = "null";
  config.optimizer.groups.emplace_back().role = "embedding";
  config.optimizer.schedule = ScheduleKind::piecewise;
  config.optimizer.schedule_points = {{0, 0.0}, {100, 1.0}, {1000, 0.1}};
  Config back = parse(to_yaml(config));
  EXPECT_EQ(values_of(back), values_of(config));
  EXPECT_EQ(to_yaml(back), to_yaml(config));
  EXPECT_EQ(back.optimizer.learning_rate, config.optimizer.learning_rate);
  EXPECT_EQ(back.train.seed, config.train.seed);
  EXPECT_EQ(back.data.cache_dir, config.data.cache_dir);
  EXPECT_EQ(back.optimizer.groups[0].role, "embedding");
  EXPECT_TRUE(compare_configs(config, back).empty());
}

TEST(Config, ReportsAllProblemsWithTheirLines) {
  std::string text = problems_of(
      "model:\n"
      "  hiden: 64\n"
      "  layers: -1\n"
      "data:\n"
      "  sources:\n"
      "    - formt: tsv\n"
      "      path: [a]\n"
      "train:\n"
      "  bach_size: 3\n"
      "  precision: fp16\n"
      "  epochs: soon\n"
      "  learning_rate: 1\n"
      "  seed: 1\n"
      "  seed: 2\n"
      "trian:\n"
      "  steps: 1\n"
      "steps: 3\n");
  std::vector<std::string> lines;
  std::istringstream stream(text);
  for (std::string line; std::getline(stream, line);) lines.push_back(line);
  EXPECT_THAT(
      lines,
      ElementsAre(
          "x.yaml:14: train.seed: given twice, first at x.yaml:13",
          "x.yaml:2: model.hiden: unknown key (did you mean model.hidden?)",
          "x.yaml:3: model.layers: expected a whole number from 0 to 1024, found '-1'",
          "x.yaml:6: data.sources.0.formt: unknown key (did you mean format?)",
          "x.yaml:7: data.sources.0.path: expected a text, found a list",
          "x.yaml:9: train.bach_size: unknown key (did you mean train.batch_size?)",
          "x.yaml:10: train.precision: expected one of fp32, bf16, fp64, found 'fp16'",
          "x.yaml:11: train.epochs: expected a number of at least 0, found 'soon'",
          "x.yaml:12: train.learning_rate: unknown key (did you mean optimizer.learning_rate?)",
          "x.yaml:15: trian: unknown section (did you mean train?)",
          "x.yaml:17: steps: unknown section (did you mean train.steps?)"));
}

TEST(Config, NamesPlaceOfWhatIsNotYaml) {
  EXPECT_THAT(problems_of("train:\n  steps: [1\n"), HasSubstr("x.yaml:3:"));
  EXPECT_THAT(problems_of("- a\n"), HasSubstr("holds a list"));
  EXPECT_THAT(problems_of("train: 3\n"), HasSubstr("x.yaml:1: train: expected a map of keys"));
  EXPECT_THAT(problems_of("a: 1\n---\nb: 2\n"), HasSubstr("more than one YAML document"));
  EXPECT_THAT(problems_of("train:\n  steps:\n"), HasSubstr("x.yaml:2: train.steps: expected"));
}

TEST(Config, OverridesComeLast) {
  Config config =
      parse(kSource,
            {"train.steps=7", "train.steps=8",
             "data.sources.0.query_prefix=q: ", "train.activation_budget=512MiB", "loss.bias=-3.5",
             "optimizer.schedule=piecewise", "optimizer.schedule_points=[{step: 0, factor: 0.5}]"});
  EXPECT_EQ(config.train.steps, 8);
  EXPECT_EQ(config.data.sources[0].query_prefix, "q: ");
  EXPECT_EQ(config.train.activation_budget, 512 << 20);
  EXPECT_EQ(config.loss.bias, -3.5);
  ASSERT_EQ(config.optimizer.schedule_points.size(), 1u);
  EXPECT_EQ(config.optimizer.schedule_points[0].second, 0.5);

  EXPECT_EQ(problems_of(kSource, {"train.stepps=7"}),
            "--set train.stepps=7: train.stepps: unknown key (did you mean train.steps?)");
  EXPECT_THAT(problems_of(kSource, {"train.steps"}), HasSubstr("expected section.key=value"));
  EXPECT_THAT(problems_of(kSource, {"data.sources.1.path=x"}), HasSubstr("no entry 1"));
  EXPECT_THAT(problems_of(kSource, {"train.steps.x=1"}), HasSubstr("--set train.steps.x=1"));
  // An override mends a mistake of the file.
  EXPECT_EQ(problems_of(std::string(kSource) + "train: {steps: x}\n", {"train.steps=1"}), "");
}

TEST(Config, DataParallelRanksMayBeAuto) {
  for (const char* text : {"auto", "0"}) {
    const Config config = parse(std::string(kSource) + "parallel: {dp: " + text + ", tp: 2}\n");
    EXPECT_EQ(config.parallel.dp, 0);
    EXPECT_THAT(to_yaml(config), HasSubstr("dp: auto\n"));
  }
  EXPECT_EQ(parse(kSource, {"parallel.dp=3"}).parallel.dp, 3);
  EXPECT_THAT(problems_of(kSource, {"parallel.dp=some"}),
              HasSubstr("parallel.dp: expected auto or a whole number from 1 to 1048576, found"));
}

TEST(Config, BytesAreReadAndWritten) {
  const std::pair<const char*, int64_t> cases[] = {{"0", 0},
                                                   {"4096", 4096},
                                                   {"512MiB", int64_t{512} << 20},
                                                   {"1.5GiB", int64_t{3} << 29},
                                                   {"2 GB", 2'000'000'000},
                                                   {"1TiB", int64_t{1} << 40}};
  for (const auto& [text, bytes] : cases) {
    int64_t read = -1;
    EXPECT_TRUE(config::parse_bytes(text, read)) << text;
    EXPECT_EQ(read, bytes) << text;
    EXPECT_TRUE(config::parse_bytes(config::bytes_text(bytes), read)) << text;
    EXPECT_EQ(read, bytes) << text;
  }
  for (const char* text : {"", "GiB", "-1", "1 potato", "0.3B", "1e3", "99999TiB", "nan"}) {
    int64_t read = 0;
    EXPECT_FALSE(config::parse_bytes(text, read)) << text;
  }
}

TEST(Config, RefusesCombinationsThatCannotWork) {
  const std::pair<std::vector<std::string>, const char*> cases[] = {
      {{"model.heads=3"}, "model.heads"},
      {{"model.hidden=36", "model.position=rotary"}, "model.position"},
      {{"model.hidden=255", "model.heads=5", "model.position=sinusoidal"}, "model.position"},
      {{"model.layers=0", "model.pooling=cls"}, "model.pooling"},
      {{"model.bias=false", "model.key_bias=true"}, "model.key_bias"},
      {{"model.max_length=2"}, "model.max_length"},
      {{"data.sources=[]"}, "data.sources"},
      {{"data.sources.0.format=tsv"}, "data.sources.0.path"},
      {{"data.sources.0.eval_path=x"}, "data.sources.0.eval_path"},
      {{"data.sources=[{format: wordnet, all_alternatives: true}]"},
       "data.sources.0.all_alternatives"},
      {{"data.sources=[{format: wordnet, weight: 1}, {format: trans-de-en}]"},
       "data.sources.1.weight"},
      {{"loss.scale=200"}, "loss.scale_max"},
      {{"loss.candidates=all", "model.towers=separate"}, "loss.candidates"},
      {{"loss.candidates=all", "loss.kind=siglip"}, "loss.candidates"},
      {{"optimizer.schedule=piecewise"}, "optimizer.schedule_points"},
      {{"optimizer.schedule_points=[{step: 1, factor: 1}]"}, "optimizer.schedule_points"},
      {{"optimizer.schedule=piecewise",
        "optimizer.schedule_points=[{step: 5, factor: 1}, {step: 5, factor: 0}]"},
       "optimizer.schedule_points.1.step"},
      {{"optimizer.groups=[{layer: 1}]"}, "optimizer.groups.0.layer"},
      {{"train.epochs=0"}, "train.epochs"},
      {{"train.batch_size=1"}, "train.batch_size"},
      {{"model.positions=63"}, "model.positions"},
      {{"model.positions=512", "model.position=rotary"}, "model.positions"},
      {{"model.layers=0", "model.token_type=true"}, "model.token_type"},
      {{"model.local_attention=128"}, "model.local_attention"},
      {{"model.local_attention=1", "model.position=rotary"}, "model.local_attention"},
      {{"model.local_attention=128", "model.layers=0"}, "model.local_attention"},
      {{"model.local_rotary_base=10000", "model.position=rotary"}, "model.local_rotary_base"},
      {{"model.local_attention=128", "model.position=rotary", "model.local_rotary_base=0.5"},
       "model.local_rotary_base"},
      {{"model.local_attention=128", "model.position=rotary", "model.global_every=1"},
       "model.global_every"},
      {{"train.growth=[{at_step: 2, hidden: 512, warmup_steps: 5}]"}, "train.growth.0.decay_steps"},
      {{"train.steps=9", "train.growth=[{at_step: 2, hidden: 512, warmup_steps: 7}]"},
       "train.growth.0.decay_steps"},
  };
  EXPECT_EQ(problems_of(kSource), "");
  for (const auto& [overrides, key] : cases) {
    std::string text = problems_of(kSource, overrides);
    EXPECT_THAT(text, HasSubstr(std::string(key) + ": ")) << fmt::format("{}", overrides[0]);
    EXPECT_THAT(text, Not(HasSubstr("\n"))) << fmt::format("{}", overrides[0]);
  }
  EXPECT_THAT(problems_of(std::string(kSource) + "model:\n  heads: 3\n"), HasSubstr("x.yaml:5: "));
}

TEST(Config, DefaultsFollowTheKind) {
  EXPECT_EQ(parse(kSource, {"loss.kind=siglip"}).loss.scale, 10);
  EXPECT_EQ(parse(kSource, {"loss.kind=siglip", "loss.scale=20"}).loss.scale, 20);
  EXPECT_EQ(parse(kSource, {"optimizer.kind=lion"}).optimizer.beta2, 0.98);
  EXPECT_EQ(parse(kSource, {"optimizer.kind=adamw"}).optimizer.beta2, 0.999);
}

TEST(Config, ComparesForResume) {
  Config saved = parse(kSource), now = saved;
  EXPECT_TRUE(compare_configs(saved, now).empty());
  now.train.batch_size = 2048;
  now.eval.every_steps = 10;
  now.data.sources.emplace_back().path = "p";
  std::map<std::string, ConfigDifference> found;
  for (const ConfigDifference& d : compare_configs(saved, now)) found[d.key] = d;
  EXPECT_TRUE(found.at("train.batch_size").fixed);
  EXPECT_EQ(found.at("train.batch_size").saved, "1024");
  EXPECT_EQ(found.at("train.batch_size").now, "2048");
  EXPECT_FALSE(found.at("eval.every_steps").fixed);
  EXPECT_EQ(found.at("data.sources.1.path").saved, "absent");
  EXPECT_TRUE(found.at("data.sources.1.format").fixed);
  EXPECT_EQ(found.size(), 2 + config::find_group("data.sources")->keys.size());
}

TEST(Config, SuggestsOnlyWhatIsNear) {
  EXPECT_EQ(config::edit_distance("abcd", "abdc"), 1u);
  EXPECT_EQ(config::edit_distance("kitten", "sitting"), 3u);
  EXPECT_EQ(config::nearest("laers", {"heads", "layers"}), "layers");
  EXPECT_EQ(config::nearest("zzzz", {"heads", "layers"}), "");
}

TEST(Config, MissingFileIsAUsageError) {
  EXPECT_THROW(load_config("/nowhere/x.yaml", {}), UsageError);
  EXPECT_THROW(load_config("/tmp", {}), UsageError);
}

TEST(Config, EveryExampleParses) {
  int count = 0;
  for (const auto& entry : std::filesystem::directory_iterator(AMUR_SOURCE_DIR "/configs")) {
    if (entry.path().extension() != ".yaml") continue;
    ++count;
    try {
      Config config = load_config(entry.path(), {});
      EXPECT_EQ(to_yaml(parse(to_yaml(config))), to_yaml(config)) << entry.path();
    } catch (const UsageError& e) {
      ADD_FAILURE() << e.what();
    }
  }
  EXPECT_GT(count, 0);
}

TEST(Config, ReferenceIsUpToDate) {
  std::ifstream file(AMUR_SOURCE_DIR "/docs/configuration.md");
  std::ostringstream text;
  text << file.rdbuf();
  EXPECT_TRUE(text.str() == configuration_reference())
      << "docs/configuration.md is not what the declarations say; write it anew:\n"
         "  build/release/src/app/amur help configuration > docs/configuration.md";
}

}  // namespace
}  // namespace amur
