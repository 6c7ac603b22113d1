// What the values of several keys mean together.
#include <algorithm>

#include "src/train/config/config_schema.h"
#include "src/train/config/growth_schedule.h"

namespace amur::config {
namespace {

class Checker {
 public:
  explicit Checker(const Config& config) : c_(config) {}

  std::vector<Problem> run() {
    model();
    data();
    loss();
    optimizer();
    parallel();
    checkpoint();
    train();
    growth();
    return std::move(problems_);
  }

 private:
  template <class... A>
  void report(std::string key, fmt::format_string<A...> format, A&&... a) {
    problems_.push_back({std::move(key), fmt::format(format, std::forward<A>(a)...)});
  }

  void model() {
    const ModelConfig& m = c_.model;
    if (m.layers > 0) {
      if (m.head_size == 0 && m.hidden % m.heads != 0)
        report("model.heads", "{} heads do not divide model.hidden {}; set model.head_size",
               m.heads, m.hidden);
      else if (m.position == PositionKind::rotary &&
               (m.head_size ? m.head_size : m.hidden / m.heads) % 2 != 0)
        report("model.position",
               "rotary positions turn pairs of numbers, but a head has {}; make "
               "model.head_size even",
               m.head_size ? m.head_size : m.hidden / m.heads);
      const int64_t head = m.head_size ? m.head_size : m.hidden / m.heads;
      if (m.rotary_size % 2 != 0 || m.rotary_size > head)
        report("model.rotary_size", "{}: an even number, at most the {} of a head, or 0",
               m.rotary_size, head);
      local_layers();
      if (m.positions > 0 && m.positions < m.max_length)
        report("model.positions", "{} are fewer than the model.max_length of {}", m.positions,
               m.max_length);
      if (m.positions > 0 && m.position != PositionKind::learned)
        report("model.positions", "{}, but model.position is not learned: set it to 0",
               m.positions);
      if (m.norm_gate && m.norm_position == NormPosition::pre)
        report("model.norm_gate", "true is for model.norm_position post, which is pre");
      if (m.position == PositionKind::sinusoidal && m.hidden % 2 != 0)
        report("model.position", "sinusoidal positions need an even model.hidden, which is {}",
               m.hidden);
    } else {
      if (m.pooling == PoolingKind::cls)
        report("model.pooling",
               "with model.layers 0 the first token of every text is the same marker: use mean");
      if (m.local_attention != 0)
        report("model.local_attention", "{}, but model.layers is 0: leave it out",
               m.local_attention);
      if (m.token_type)
        report("model.token_type",
               "with model.layers 0 every embedding would move by the same vector: leave it out");
    }
    if (m.key_bias && !m.bias)
      report("model.key_bias",
             "true, but model.bias is false: a model has both or neither other bias");
    if (m.max_length < 3)
      report("model.max_length", "{} leaves no room for a text between its two markers",
             m.max_length);
  }

  void local_layers() {
    const ModelConfig& m = c_.model;
    if (m.local_attention == 0) {
      if (m.local_rotary_base != 0)
        report("model.local_rotary_base",
               "{}, but no layer is local: set model.local_attention, or leave it out",
               m.local_rotary_base);
      return;
    }
    if (m.position != PositionKind::rotary)
      report("model.local_attention", "{}: local layers need model.position rotary",
             m.local_attention);
    if (m.local_attention == 1)
      report("model.local_attention", "1 lets a token see itself alone: take at least 2, or 0");
    if (m.global_every == 1)
      report("model.global_every",
             "1 makes every layer see the whole text: set model.local_attention to 0");
    if (m.local_rotary_base != 0 && m.local_rotary_base <= 1)
      report("model.local_rotary_base", "{}: a number above 1, or 0", m.local_rotary_base);
  }

  void data() {
    const auto& sources = c_.data.sources;
    if (sources.empty())
      report("data.sources", "there is nothing to train on: give at least one source");
    int64_t weighted = std::count_if(sources.begin(), sources.end(),
                                     [](const SourceConfig& s) { return s.weight > 0; });
    for (size_t i = 0; i < sources.size(); ++i) {
      const SourceConfig& s = sources[i];
      std::string prefix = fmt::format("data.sources.{}.", i);
      bool packaged = s.format == SourceFormat::trans_de_en || s.format == SourceFormat::wordnet;
      if (!packaged && s.format != SourceFormat::none && s.path.empty())
        report(prefix + "path", "a tsv or jsonl source needs the path of its file");
      if (packaged && !s.eval_path.empty())
        report(prefix + "eval_path", "this format brings its own split; leave eval_path out");
      if (s.all_alternatives && s.format != SourceFormat::trans_de_en)
        report(prefix + "all_alternatives", "only trans-de-en has alternatives");
      if (weighted > 0 && s.weight == 0)
        report(prefix + "weight",
               "0, but other sources have a weight: give one to every source or to none");
    }
    if (c_.data.subword_sampling > 0 && c_.data.tokenizer == TokenizerKind::ngrams)
      report("data.subword_sampling", "n-grams have one segmentation only; set it to 0");
    if (c_.data.subword_sampling > 0 &&
        (c_.data.tokenizer == TokenizerKind::wordpiece || c_.data.tokenizer == TokenizerKind::bpe ||
         c_.data.tokenizer == TokenizerKind::unigram))
      report("data.subword_sampling", "only sentencepiece draws segmentations; set it to 0");
    if (c_.data.subword_sampling > 0 && c_.data.tokenizer_model.empty() && c_.data.vocab_size < 64)
      report("data.subword_sampling", "needs a larger data.vocab_size than {}", c_.data.vocab_size);
  }

  void loss() {
    const LossConfig& l = c_.loss;
    if (l.scale_max < l.scale)
      report("loss.scale_max", "{} is below the initial loss.scale {}", l.scale_max, l.scale);
    if (l.candidates == LossCandidates::all) {
      if (c_.model.towers == TowerKind::separate)
        report("loss.candidates",
               "all compares queries with queries, which needs model.towers shared");
      if (l.kind == LossKind::siglip)
        report("loss.candidates", "all is a choice of infonce; siglip takes documents");
    }
    if (l.precision == LossPrecision::bf16 && c_.train.precision == Precision::fp64)
      report("loss.precision", "train.precision fp64 takes products in fp64; set it to fp32");
  }

  void optimizer() {
    const OptimizerConfig& o = c_.optimizer;
    const auto& points = o.schedule_points;
    if (o.schedule == ScheduleKind::piecewise && points.empty())
      report("optimizer.schedule_points",
             "optimizer.schedule is piecewise, but there are no points");
    if (o.schedule == ScheduleKind::cosine && !points.empty())
      report("optimizer.schedule_points",
             "only used with optimizer.schedule piecewise, which is cosine");
    state();
    for (size_t i = 1; i < points.size(); ++i) {
      if (points[i].first <= points[i - 1].first)
        report(fmt::format("optimizer.schedule_points.{}.step", i),
               "{} does not come after the step before it, {}", points[i].first,
               points[i - 1].first);
    }
    for (size_t i = 0; i < o.groups.size(); ++i) {
      if (o.groups[i].layer >= c_.model.layers)
        report(fmt::format("optimizer.groups.{}.layer", i),
               "{} matches nothing: the model has {} layers, counted from 0", o.groups[i].layer,
               c_.model.layers);
    }
  }

  void state() {
    const StatePrecision state = c_.optimizer.state;
    if (state == StatePrecision::fp32) return;
    const char* name = state == StatePrecision::bf16 ? "bf16" : "bf16_weights";
    if (c_.train.precision == Precision::fp64)
      report("optimizer.state",
             "{}, but train.precision fp64 is for proofs: use optimizer.state fp32", name);
    if (!c_.train.growth.empty())
      report("optimizer.state",
             "{}, but train.growth needs weights that can be divided exactly: use optimizer.state "
             "fp32",
             name);
    if (state != StatePrecision::bf16) return;
    if (c_.optimizer.kind != OptimizerKind::tiger)
      report(
          "optimizer.state",
          "bf16 needs optimizer.kind tiger, whose step is the sign of its momentum; the steps of "
          "adamw and lion are made from small changes of moments that bf16 rounds away: use "
          "bf16_weights",
          name);
    if (c_.parallel.sync_precision == SyncPrecision::bf16)
      report("optimizer.state",
             "bf16 has no room for what parallel.sync_precision bf16 rounds away: use fp32 there "
             "(momenta in bf16 travel as fp32), or optimizer.state bf16_weights");
  }

  void parallel() {
    if (c_.parallel.sync_precision != SyncPrecision::bf16) return;
    if (c_.optimizer.kind != OptimizerKind::tiger)
      report("parallel.sync_precision", "bf16 needs optimizer.kind tiger");
    if (c_.train.precision == Precision::fp64)
      report("parallel.sync_precision", "bf16 needs train.precision fp32 or bf16");
  }

  void checkpoint() {
    const std::string& hints = c_.checkpoint.mpi_io_hints;
    for (size_t at = 0; at < hints.size();) {
      const size_t comma = std::min(hints.find(',', at), hints.size());
      const std::string entry = hints.substr(at, comma - at);
      if (entry.find('=') == std::string::npos)
        report("checkpoint.mpi_io_hints", "'{}' is not key=value", entry);
      at = comma + 1;
    }
  }

  void train() {
    const TrainConfig& t = c_.train;
    if (t.steps == 0 && t.epochs == 0)
      report("train.epochs", "0, and train.steps too: the run has no length");
    if (t.batch_size == 1 && c_.loss.kind == LossKind::infonce && c_.data.hard_negatives == 0)
      report("train.batch_size", "1 leaves a query nothing to be told apart from");
  }

  // Each entry by itself, with its reasons; the sizes of one are where the next begins.
  void growth() {
    ModelConfig model = c_.model;
    model.vocab = 1;  // not known yet
    int64_t before = 0;
    for (size_t i = 0; i < c_.train.growth.size() && problems_.empty(); ++i) {
      const RunGrowth& entry = c_.train.growth[i];
      const std::string prefix = fmt::format("train.growth.{}.", i);
      if (entry.at_step <= before)
        report(prefix + "at_step", "{} does not come after the one before it, {}", entry.at_step,
               before);
      before = entry.at_step;
      try {
        const Growth growth(model, entry.options);
        if (growth.changes_nothing())
          report(prefix + "at_step",
                 "nothing grows at step {}: give a size that is larger than the model's",
                 entry.at_step);
        model = growth.to();
        Config grown = c_;
        apply(entry.schedule, entry.at_step, grown);
      } catch (const UsageError& e) {
        const std::string text = keys_for_options(e.what());
        report(prefix + first_option(e.what()), "{}", text);
      }
    }
  }

  // "--head-size 3" as the key of an entry: "head_size 3".
  static std::string key_of(std::string option) {
    std::replace(option.begin(), option.end(), '-', '_');
    return option;
  }
  static std::string first_option(const std::string& text) {
    const size_t at = text.find("--") + 2;
    return key_of(text.substr(at, text.find_first_of(" :", at) - at));
  }
  static std::string keys_for_options(std::string text) {
    for (size_t at = text.find("--"); at != std::string::npos; at = text.find("--", at)) {
      const size_t end = std::min(text.find_first_of(" :", at), text.size());
      text.replace(at, end - at, key_of(text.substr(at + 2, end - at - 2)));
    }
    return text;
  }

  const Config& c_;
  std::vector<Problem> problems_;
};

}  // namespace

void apply_dependent_defaults(Config& config, const Origins& given_at) {
  auto set = [&](const char* key, double& member, double value) {
    if (given_at(key).empty()) member = value;
  };
  if (config.loss.kind == LossKind::siglip) set("loss.scale", config.loss.scale, 10);
  if (config.optimizer.kind == OptimizerKind::lion) {
    set("optimizer.beta1", config.optimizer.beta1, 0.95);
    set("optimizer.beta2", config.optimizer.beta2, 0.98);
  }
}

std::vector<Problem> impossible_combinations(const Config& config) {
  return Checker(config).run();
}

}  // namespace amur::config
