// The configuration of a run: one struct a section, one key a member.
//
// Every key is declared once, in config_keys.cpp, with default, range and a line of documentation;
// parser,
// `--help`, docs/configuration.md and the start-up banner are generated from the declaration.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "src/model/growth.h"

namespace amur {

enum class Precision : uint8_t { fp32, bf16, fp64 };
enum class SourceFormat : uint8_t { trans_de_en, wordnet, tsv, jsonl, none };
enum class MalformedPolicy : uint8_t { refuse, skip };
enum class EvalSplit : uint8_t { test, val };
enum class TokenizerKind : uint8_t { sentencepiece, ngrams, wordpiece, bpe, unigram };

// One entry of `data.sources`.
struct SourceConfig {
  SourceFormat format = SourceFormat::tsv;
  std::string path;  // file (plain or .gz) or folder; empty: where the Debian package puts it
  std::string
      eval_path;      // tsv, jsonl: pairs for evaluation; empty: a keyed split by data.eval_share
  double weight = 0;  // > 0 on every source or on none: draw with replacement
  std::string query_prefix, document_prefix;
  bool all_alternatives = false;  // trans-de-en: cross all alternatives of a group
};

struct DataConfig {
  std::vector<SourceConfig> sources;
  TokenizerKind tokenizer = TokenizerKind::sentencepiece;
  int64_t vocab_size = 16000;
  double character_coverage = 0.9995;
  bool lower_case = false;
  std::string tokenizer_model;             // a file to use instead of training a vocabulary
  double subword_sampling = 0;             // SentencePiece alpha; 0: always the best segmentation
  int64_t hard_negatives = 0;              // at most this many of a sample's own negatives
  double eval_share = 0.05;                // of a tsv or jsonl source without eval_path
  EvalSplit eval_split = EvalSplit::test;  // of trans_de_en and wordnet; the other is not used
  int64_t eval_limit = 0;                  // at most this many pairs; 0: all
  MalformedPolicy malformed = MalformedPolicy::refuse;
  std::string cache_dir;  // of offset indexes; empty: beside the file
  int64_t threads = 0;    // that make batches ahead; 0: Trainer decides
};

enum class LossKind : uint8_t { infonce, siglip };
enum class LossCandidates : uint8_t { documents, all };
enum class LossPrecision : uint8_t { fp32, bf16 };

struct LossConfig {
  LossKind kind = LossKind::infonce;
  bool symmetric = true;                                  // infonce: both directions
  LossCandidates candidates = LossCandidates::documents;  // all: one tower, own text excluded
  bool mask_duplicates = true;
  double scale = 20;       // initial exp(t); siglip: 10
  double scale_max = 100;  // clamp of exp(t)
  bool learn_scale = true;
  double scale_learning_rate = 0.002;  // step of t under sign optimizers, rate under AdamW
  double bias = -10;                   // siglip
  bool learn_bias = true;
  LossPrecision precision = LossPrecision::fp32;  // of what products take
  int64_t tile_rows = 0, tile_columns = 0;        // 0, written as "auto": by the device
};

enum class OptimizerKind : uint8_t { tiger, adamw, lion };
// What weights and their momenta are kept in: both fp32, bf16 weights beside fp32 momenta, both
// bf16.
enum class StatePrecision : uint8_t { fp32, bf16_weights, bf16 };
enum class EmbeddingRows : uint8_t { lazy, dense };
enum class ScheduleKind : uint8_t { piecewise, cosine };
enum class ClipKind : uint8_t { none, min, soft };

// `optimizer.groups`: the first entry that matches a parameter applies.
struct ParameterGroup {
  std::string role;          // embedding, weight, bias, gain, scalar; empty: any
  int64_t layer = -1;        // layer index; -1: any
  double learning_rate = 1;  // multiplier
  double decay = 1;          // multiplier
  bool frozen = false;
};

struct OptimizerConfig {
  OptimizerKind kind = OptimizerKind::tiger;
  StatePrecision state = StatePrecision::fp32;
  double learning_rate = 0.002;
  double weight_decay = 0.01;
  double beta = 0.965;                // tiger
  double beta1 = 0.9, beta2 = 0.999;  // adamw; lion (0.95, 0.98 by default there)
  double epsilon = 1e-8;              // adamw
  EmbeddingRows embedding_rows = EmbeddingRows::lazy;
  double embedding_rate = 10;          // K of the lazy rule
  double embedding_tail = 0;           // T; 0: 1/(1-beta)
  double embedding_learning_rate = 0;  // adamw, lion: of embedding tables; 0: learning_rate
  std::vector<ParameterGroup> groups;

  ScheduleKind schedule = ScheduleKind::cosine;
  int64_t warmup_steps = 50;
  double final_fraction = 0.05;  // cosine: of the rate at the end
  // piecewise: (optimizer step, factor); linear between, constant after the last
  std::vector<std::pair<int64_t, double>> schedule_points;

  ClipKind clip = ClipKind::none;
  double clip_norm = 1;  // gamma, for the global norm of the cached embedding gradients
};

// The learning rate behind a growth.
// All 0: the schedule goes on as it was. Otherwise, behind the growth, the rate rises in a straight
// line to the peak, and falls in a straight line to optimizer.final_fraction. LEMON (arXiv
// 2310.07999) keeps the largest rate of a run from scratch, warms up again for a short while and
// lets the rate fall sooner.
struct GrowthSchedule {
  int64_t warmup_steps = 0;  // to the peak; 0: the first step has it
  double peak_rate = 0;      // of optimizer.learning_rate; 0: 1, the largest rate as it was
  int64_t decay_steps = 0;  // from the growth to the end of the fall; 0: to the end of the schedule

  bool changes() const { return warmup_steps > 0 || peak_rate > 0 || decay_steps > 0; }
};

// One entry of `train.growth`.
struct RunGrowth {
  int64_t at_step = 0;  // steps done
  GrowthOptions options;
  GrowthSchedule schedule;
};

struct TrainConfig {
  std::string start_from;  // a checkpoint that a new run has its weights from
  int64_t steps = 0;       // 0: from epochs
  double epochs = 1;
  int64_t schedule_steps = 0;      // 0: the steps of the run
  int64_t batch_size = 1024;       // queries of the global batch
  int64_t accumulate = 1;          // independent batches a step
  int64_t chunk_tokens = 0;        // 0, written as "auto": see src/train/budgets.h
  int64_t activation_budget = -1;  // bytes a rank; -1, written as "auto"
  uint64_t seed = 0;
  Precision precision = Precision::fp32;
  int64_t max_skipped_steps = 10;  // in a row, non-finite
  std::vector<RunGrowth> growth;
};

enum class SyncPrecision : uint8_t { fp32, bf16 };

struct ParallelConfig {
  int64_t dp = 0;  // 0, written as "auto": all ranks / tp
  int64_t tp = 1;
  int64_t threads = 0;
  bool overlap_sync = true;
  bool node_sync = true;
  SyncPrecision sync_precision = SyncPrecision::fp32;
  int64_t check_replicas_every_steps = 100;
};

enum class CheckpointAsync : uint8_t { automatic, on, off };

struct CheckpointConfig {
  int64_t every_steps = 0;
  double every_minutes = 10;
  int64_t keep = 3;       // newest complete ones
  bool keep_best = true;  // also the one with the best evaluation
  CheckpointAsync async = CheckpointAsync::automatic;
  int64_t compression = 0;                // deflate level
  int64_t chunk_size = int64_t{1} << 20;  // bytes of a chunk of a compressed tensor
  std::string mpi_io_hints;               // "key=value, key=value"
};

struct EvalConfig {
  int64_t every_steps = 0;   // 0: only at the end
  int64_t chunk_tokens = 0;  // 0: train.chunk_tokens
};

enum class AttentionChoice : uint8_t { automatic, own, cudnn };

struct RuntimeConfig {
  double liveness_seconds = 15;
  double progress_seconds = 600;
  bool check_collectives = false;
  bool tune = true;  // measure the algorithms of products on a GPU
  AttentionChoice attention = AttentionChoice::automatic;
  int64_t log_every = 0;  // steps between plain log lines; 0: about 100 lines a run
};

struct Config {
  ModelConfig model;
  DataConfig data;
  LossConfig loss;
  OptimizerConfig optimizer;
  TrainConfig train;
  ParallelConfig parallel;
  CheckpointConfig checkpoint;
  EvalConfig eval;
  RuntimeConfig runtime;
};

// Reads a YAML file and applies `overrides` ("train.steps=10"). Throws UsageError that lists every
// problem, one a line, as "configs/x.yaml:14: train.bach_size: unknown key (did you mean
// train.batch_size?)". Checks ranges and the combinations that cannot work.
//
// `start` gives the values of keys that are not given, where train.start_from is: those of its
// model and vocabulary.
using StartingPoint = std::function<Config(const std::string& start_from)>;
Config load_config(const std::string& path, const std::vector<std::string>& overrides,
                   const StartingPoint& start = {});
// From YAML text, e.g. the resolved configuration kept in a checkpoint; `origin` names it.
Config parse_config(const std::string& yaml, const std::string& origin,
                    const std::vector<std::string>& overrides);
// The resolved configuration as YAML that `parse_config` reads back to the same value.
std::string to_yaml(const Config& config);
// docs/configuration.md.
std::string configuration_reference();

// How a key may change on resume: `fixed` keys decide the model or the data order.
struct ConfigDifference {
  std::string key, saved, now;
  bool fixed;
};
std::vector<ConfigDifference> compare_configs(const Config& saved, const Config& now);

}  // namespace amur
