// Every key of the configuration, declared once.
#include "src/train/config/config_declare.h"

namespace amur::config {
namespace {

void declare_model(Group& group) {
  Declare key(
      group, [](auto& config, size_t) -> auto& { return config.model; });
  using M = ModelConfig;
  key.whole("layers", &M::layers, between(0, 1024),
            "transformer layers; 0: a static embedding model, the pooled token embeddings", kFixed);
  key.whole("hidden", &M::hidden, between(1, 65536), "width of the model", kFixed);
  key.whole("heads", &M::heads, between(1, 1024), "attention heads", kFixed);
  key.whole("head_size", &M::head_size, between(0, 1024), "width of a head; 0: hidden / heads",
            kFixed);
  key.whole("ffn", &M::ffn, between(0, 262144),
            "width of the feed-forward network; 0: 4 * hidden, for gated activations 8/3 * hidden "
            "rounded up to a multiple of 64",
            kFixed);
  key.words("activation", &M::activation,
            {{"gelu", ActivationKind::gelu},
             {"gelu_tanh", ActivationKind::gelu_tanh},
             {"relu", ActivationKind::relu},
             {"swiglu", ActivationKind::swiglu},
             {"geglu", ActivationKind::geglu}},
            "activation of the feed-forward network; swiglu and geglu are gated", kFixed);
  key.words("norm", &M::norm, {{"layer", NormKind::layer}, {"rms", NormKind::rms}},
            "LayerNorm or RMSNorm", kFixed);
  key.words("norm_position", &M::norm_position,
            {{"pre", NormPosition::pre}, {"post", NormPosition::post}},
            "norm before each block or after its residual sum", kFixed);
  key.real("norm_eps", &M::norm_eps, inside(0, 1), "added to the variance in norms", kFixed);
  key.whole("positions", &M::positions, between(0, 1 << 20),
            "rows of learned positions, at least max_length; 0: as many as max_length", kFixed);
  key.flag("token_type", &M::token_type,
           "a learned vector added to every token: BERT's token type 0", kFixed);
  key.flag("norm_gate", &M::norm_gate,
           "post: a norm behind a block gives g norm(x) + (1 - g) x, g learned and 1 at first; for "
           "growth in depth",
           kFixed);
  key.words("position", &M::position,
            {{"learned", PositionKind::learned},
             {"sinusoidal", PositionKind::sinusoidal},
             {"rotary", PositionKind::rotary},
             {"none", PositionKind::none}},
            "how positions enter", kFixed);
  key.real("rotary_base", &M::rotary_base, above(1), "base of the rotary frequencies", kFixed);
  key.whole("rotary_size", &M::rotary_size, between(0, 1024),
            "elements of a head behind which the rotary frequencies repeat; 0: the head's size",
            kFixed);
  key.whole("local_attention", &M::local_attention, between(0, 1 << 21),
            "rotary: a token of a local layer sees those at most half so many places away, as in "
            "ModernBERT; 0: every layer sees the whole text",
            kFixed);
  key.whole("global_every", &M::global_every, between(1, 1024),
            "with local_attention: layers 0, n, 2n, .. see the whole text, the others are local",
            kFixed);
  key.real("local_rotary_base", &M::local_rotary_base, at_least(0),
           "base of the rotary frequencies of local layers; 0: rotary_base", kFixed);
  key.words("pooling", &M::pooling, {{"mean", PoolingKind::mean}, {"cls", PoolingKind::cls}},
            "embedding of a text: mean over its tokens, or its first token", kFixed);
  key.whole("projection", &M::projection, between(0, 65536),
            "width of a linear layer after pooling, which is then the width of the embeddings; "
            "0: none",
            kFixed);
  key.words("towers", &M::towers,
            {{"shared", TowerKind::shared}, {"separate", TowerKind::separate}},
            "one encoder for queries and documents, or one for each", kFixed);
  key.real("dropout", &M::dropout, from_below(0, 1), "after the embedding and in each block");
  key.real("attention_dropout", &M::attention_dropout, from_below(0, 1),
           "of attention probabilities");
  key.real("word_dropout", &M::word_dropout, from_below(0, 1),
           "share of tokens removed from training texts");
  key.whole("max_length", &M::max_length, between(1, 1 << 20),
            "tokens at which a text is cut, begin and end markers included", kFixed);
  key.flag("bias", &M::bias, "biases in linear layers and LayerNorm", kFixed);
  key.flag("key_bias", &M::key_bias,
           "bias of the attention keys too; its true gradient is 0, so leave it out unless an "
           "imported model has one",
           kFixed);
  key.real("init_std", &M::init_std, between(0, 10),
           "standard deviation of initial linear weights (truncated normal)", kFixed);
  key.real("embedding_std", &M::embedding_std, between(0, 10),
           "standard deviation of initial embeddings", kFixed);
  key.real("residual_init", &M::residual_init, between(0, 10),
           "factor on init_std for the projections that end in a residual sum; 0: "
           "1 / sqrt(2 * layers)",
           kFixed);
}

void declare_data(Group& group) {
  Declare key(
      group, [](auto& config, size_t) -> auto& { return config.data; });
  using D = DataConfig;
  key.words("tokenizer", &D::tokenizer,
            {{"sentencepiece", TokenizerKind::sentencepiece},
             {"ngrams", TokenizerKind::ngrams},
             {"wordpiece", TokenizerKind::wordpiece},
             {"bpe", TokenizerKind::bpe},
             {"unigram", TokenizerKind::unigram}},
            "sentencepiece: a vocabulary trained on the training split; ngrams: words and their "
            "character 3- to 5-grams hashed into vocab_size ids, for static models (0 layers); "
            "wordpiece (BERT's), bpe (of bytes, RoBERTa's), unigram (XLM-RoBERTa's): from the "
            "tokenizer.json that tokenizer_model names",
            kFixed);
  key.whole("vocab_size", &D::vocab_size, between(16, 1 << 24), "tokens of the vocabulary", kFixed);
  key.real("character_coverage", &D::character_coverage, between(0.5, 1),
           "share of the text's characters that the vocabulary covers", kFixed);
  key.flag("lower_case", &D::lower_case, "fold case before tokenization", kFixed);
  key.text("tokenizer_model", &D::tokenizer_model,
           "a SentencePiece model file, or a Hugging Face tokenizer.json for wordpiece, bpe and "
           "unigram, to use instead of training a vocabulary; empty: train one",
           kFixed);
  key.real("subword_sampling", &D::subword_sampling, between(0, 1),
           "alpha of SentencePiece's sampled segmentations in training; 0: always the best one");
  key.whole("hard_negatives", &D::hard_negatives, between(0, 4096),
            "at most this many of a sample's own negatives join its batch");
  key.real("eval_share", &D::eval_share, from_below(0, 1),
           "share of the samples of a tsv or jsonl source without eval_path that is kept for "
           "evaluation",
           kFixed);
  key.words("eval_split", &D::eval_split, {{"test", EvalSplit::test}, {"val", EvalSplit::val}},
            "which held-out split of trans-de-en and wordnet is evaluated on");
  key.whole("eval_limit", &D::eval_limit, at_least(0),
            "at most this many evaluation pairs; 0: all");
  key.words("malformed", &D::malformed,
            {{"refuse", MalformedPolicy::refuse}, {"skip", MalformedPolicy::skip}},
            "lines that cannot be read end the run, or are counted and passed over", kFixed);
  key.text("cache_dir", &D::cache_dir,
           "folder of the offset indexes of large files; empty: beside the data file, or in the "
           "folder for temporary files where that cannot be written");
  key.whole("threads", &D::threads, between(0, 1024),
            "threads of a rank that read and tokenize ahead of the steps; 0: one where the CPU "
            "computes, on a GPU the rank's share of the machine's cores");
}

void declare_sources(Group& group) {
  group.size = [](const Config& config) { return config.data.sources.size(); };
  group.resize = [](Config& config, size_t n) { config.data.sources.resize(n); };
  Declare key(
      group, [](auto& config, size_t entry) -> auto& { return config.data.sources[entry]; });
  using S = SourceConfig;
  key.words("format", &S::format,
            {{"trans-de-en", SourceFormat::trans_de_en},
             {"wordnet", SourceFormat::wordnet},
             {"tsv", SourceFormat::tsv},
             {"jsonl", SourceFormat::jsonl},
             {"none", SourceFormat::none}},
            "trans-de-en and wordnet: the Debian packages; tsv: query TAB document; jsonl: "
            "{\"query\", \"pos\": [..], \"neg\": [..]} or {\"anchor\", \"positive\", "
            "\"negative\"}; none: of an imported model, which has prefixes but no data",
            kFixed);
  key.text("path", &S::path,
           "file (plain or .gz), for wordnet a folder; empty: where the Debian package puts it");
  key.text("eval_path", &S::eval_path,
           "tsv, jsonl: a file of pairs for evaluation; empty: split by data.eval_share");
  key.real("weight", &S::weight, at_least(0),
           "above 0 on every source: sources are drawn with replacement in these proportions; 0 on "
           "all: every sample once an epoch",
           kFixed);
  key.text("query_prefix", &S::query_prefix, "put before every query, for example \"query: \"",
           kFixed);
  key.text("document_prefix", &S::document_prefix, "put before every document", kFixed);
  key.flag("all_alternatives", &S::all_alternatives,
           "trans-de-en: pair all alternatives of an entry instead of the first ones", kFixed);
}

void declare_loss(Group& group) {
  Declare key(
      group, [](auto& config, size_t) -> auto& { return config.loss; });
  using L = LossConfig;
  key.words("kind", &L::kind, {{"infonce", LossKind::infonce}, {"siglip", LossKind::siglip}},
            "softmax over the candidates of each query, or a sigmoid for each pair", kFixed);
  key.flag("symmetric", &L::symmetric, "infonce: the mean of both directions");
  key.words("candidates", &L::candidates,
            {{"documents", LossCandidates::documents}, {"all", LossCandidates::all}},
            "what a query is told apart from: all documents of the global batch, or the other "
            "queries too (one tower; the text itself is left out)");
  key.flag("mask_duplicates", &L::mask_duplicates,
           "equal texts and further right documents are not counted as wrong");
  key.real("scale", &L::scale, above(0),
           "initial factor on the cosine, 1 / temperature; siglip: 10 unless given");
  key.real("scale_max", &L::scale_max, above(0), "the learned factor is kept at or below this");
  key.flag("learn_scale", &L::learn_scale, "learn the factor", kFixed);
  key.real("scale_learning_rate", &L::scale_learning_rate, at_least(0),
           "step of log(scale), and of the bias, under tiger and lion; learning rate under adamw");
  key.real("bias", &L::bias, any(), "siglip: initial bias");
  key.flag("learn_bias", &L::learn_bias, "siglip: learn the bias", kFixed);
  key.words("precision", &L::precision,
            {{"fp32", LossPrecision::fp32}, {"bf16", LossPrecision::bf16}},
            "bf16: inexact; embeddings and gradients of the logits are rounded on the way into "
            "products, which a GPU then computes many times as fast. Logits, sums and the loss "
            "stay fp32");
  key.whole_or("auto", "tile_rows", &L::tile_rows, 1 << 20,
               "rows of the tiles in which the logits are computed; auto: 256 on a CPU, 1536 on a "
               "GPU");
  key.whole_or("auto", "tile_columns", &L::tile_columns, 1 << 20,
               "columns of the tiles; auto: 1024 on a CPU, 5504 on a GPU");
}

void declare_optimizer(Group& group) {
  Declare key(
      group, [](auto& config, size_t) -> auto& { return config.optimizer; });
  using O = OptimizerConfig;
  key.words("kind", &O::kind,
            {{"tiger", OptimizerKind::tiger},
             {"adamw", OptimizerKind::adamw},
             {"lion", OptimizerKind::lion}},
            "tiger keeps one momentum and no gradient", kFixed);
  key.words(
      "state", &O::state,
      {{"fp32", StatePrecision::fp32},
       {"bf16_weights", StatePrecision::bf16_weights},
       {"bf16", StatePrecision::bf16}},
      "what weights, embeddings and their momenta are kept in: fp32; weights in bf16, rounded "
      "stochastically, beside fp32 momenta; both in bf16, tiger only (docs/numerics.md)");
  key.real("learning_rate", &O::learning_rate, at_least(0),
           "rate at schedule factor 1; under tiger relative to the RMS of each tensor");
  key.real("weight_decay", &O::weight_decay, at_least(0), "decoupled weight decay");
  key.real("beta", &O::beta, from_below(0, 1), "tiger: decay of the momentum");
  key.real("beta1", &O::beta1, from_below(0, 1), "adamw, lion; lion: 0.95 unless given");
  key.real("beta2", &O::beta2, from_below(0, 1), "adamw, lion; lion: 0.98 unless given");
  key.real("epsilon", &O::epsilon, above(0), "adamw: added to the root of the second moment");
  key.words("embedding_rows", &O::embedding_rows,
            {{"lazy", EmbeddingRows::lazy}, {"dense", EmbeddingRows::dense}},
            "rows of the token table move only around the steps in which they occur, or at every "
            "step",
            kFixed);
  key.real(
      "embedding_rate", &O::embedding_rate, above(0),
      "tiger, lazy rows: how many times faster a row moves than its share of occurrences asks");
  key.real("embedding_tail", &O::embedding_tail, at_least(0),
           "tiger, lazy rows: steps for which a row goes on moving after it occurred; 0: "
           "1 / (1 - beta)");
  key.real("embedding_learning_rate", &O::embedding_learning_rate, at_least(0),
           "adamw, lion: rate of embedding tables; 0: learning_rate");
  key.words("schedule", &O::schedule,
            {{"piecewise", ScheduleKind::piecewise}, {"cosine", ScheduleKind::cosine}},
            "linear between schedule_points, or warm-up and half a cosine over the run");
  key.whole("warmup_steps", &O::warmup_steps, at_least(0),
            "cosine: steps of linear warm-up, counted in optimizer steps");
  key.real("final_fraction", &O::final_fraction, between(0, 1),
           "cosine: schedule factor at the end");
  key.words("clip", &O::clip,
            {{"none", ClipKind::none}, {"min", ClipKind::min}, {"soft", ClipKind::soft}},
            "factor on the embedding gradients: min(1, clip_norm / norm) or clip_norm / (norm + "
            "clip_norm)");
  key.real("clip_norm", &O::clip_norm, above(0), "global norm of the embedding gradients");
}

void declare_parameter_groups(Group& group) {
  group.size = [](const Config& config) { return config.optimizer.groups.size(); };
  group.resize = [](Config& config, size_t n) { config.optimizer.groups.resize(n); };
  Declare key(
      group, [](auto& config, size_t entry) -> auto& { return config.optimizer.groups[entry]; });
  using P = ParameterGroup;
  key.words("role", &P::role,
            {{"any", ""},
             {"embedding", "embedding"},
             {"weight", "weight"},
             {"bias", "bias"},
             {"gain", "gain"},
             {"scalar", "scalar"}},
            "which parameters", kFixed);
  key.whole("layer", &P::layer, between(-1, 1024), "of which layer, from 0; -1: any", kFixed);
  key.real("learning_rate", &P::learning_rate, at_least(0), "multiplier of the learning rate",
           kFixed);
  key.real("decay", &P::decay, at_least(0), "multiplier of the weight decay", kFixed);
  key.flag("frozen", &P::frozen, "these parameters are not trained and have no optimizer state",
           kFixed);
}

void declare_schedule_points(Group& group) {
  group.size = [](const Config& config) { return config.optimizer.schedule_points.size(); };
  group.resize = [](Config& config, size_t n) { config.optimizer.schedule_points.resize(n); };
  Declare key(
      group,
      [](auto& config, size_t entry) -> auto& { return config.optimizer.schedule_points[entry]; });
  using Point = std::pair<int64_t, double>;
  key.whole("step", &Point::first, at_least(0), "optimizer step, rising from entry to entry");
  key.real("factor", &Point::second, at_least(0),
           "factor on learning_rate there; linear between points, constant after the last");
}

void declare_train(Group& group) {
  Declare key(
      group, [](auto& config, size_t) -> auto& { return config.train; });
  using T = TrainConfig;
  key.text("start_from", &T::start_from,
           "a checkpoint file, run folder or Hugging Face folder that a new run has its weights "
           "and vocabulary from; "
           "its model.* are then the defaults here",
           kFixed);
  key.whole("steps", &T::steps, at_least(0), "optimizer steps of the run; 0: from train.epochs");
  key.real("epochs", &T::epochs, at_least(0), "passes over the training samples");
  key.whole("schedule_steps", &T::schedule_steps, at_least(0),
            "steps over which the schedule runs; 0: the steps of the run");
  key.whole("batch_size", &T::batch_size, between(1, 1 << 30), "queries of the global batch",
            kFixed);
  key.whole("accumulate", &T::accumulate, between(1, 1 << 20),
            "independent batches averaged into one optimizer step", kFixed);
  key.whole_or("auto", "chunk_tokens", &T::chunk_tokens, 1 << 30,
               "tokens that a rank encodes at once; a longer text is a chunk of its own; auto: "
               "chosen at start, by memory on a CPU (4096, or less), by measuring on a GPU");
  key.bytes_or("auto", "activation_budget", &T::activation_budget,
               "bytes a rank may use to keep activations from the first pass to the second; what "
               "does not fit is computed twice; auto: half of the memory that is free (GPU: nine "
               "tenths) without what else a step needs");
  key.whole("seed", &T::seed, at_least(0), "of initial weights, data order and dropout", kFixed);
  key.words("precision", &T::precision,
            {{"fp32", Precision::fp32}, {"bf16", Precision::bf16}, {"fp64", Precision::fp64}},
            "bf16: activations and matrix products, with fp32 weights and sums; fp64: for proofs",
            kFixed);
  key.whole("max_skipped_steps", &T::max_skipped_steps, at_least(0),
            "so many steps in a row may be skipped because something was not finite");
}

void declare_growth(Group& group) {
  group.size = [](const Config& config) { return config.train.growth.size(); };
  group.resize = [](Config& config, size_t n) { config.train.growth.resize(n); };
  Declare entry(
      group, [](auto& config, size_t i) -> auto& { return config.train.growth[i]; });
  entry.whole("at_step", &RunGrowth::at_step, at_least(1),
              "optimizer steps done when the model grows, rising from entry to entry");
  Declare key(
      group, [](auto& config, size_t i) -> auto& { return config.train.growth[i].options; });
  using G = GrowthOptions;
  key.whole("hidden", &G::hidden, between(0, 65536), "width of the model; 0: as it is");
  key.whole("heads", &G::heads, between(0, 1024), "attention heads; 0: as they are");
  key.whole("head_size", &G::head_size, between(0, 1024), "width of a head; 0: as it is");
  key.whole("ffn", &G::ffn, between(0, 262144), "width of the feed-forward network; 0: as it is");
  key.whole("layers", &G::layers, between(0, 1024), "layers; 0: as they are");
  key.whole("positions", &G::positions, between(0, 1 << 20), "model.max_length; 0: as it is");
  key.words("head_growth", &G::head_growth,
            {{"extend", HeadGrowth::extend}, {"copies", HeadGrowth::copies}},
            "a larger head: new numbers beside the old ones, or copies of them");
  key.words(
      "split", &G::split,
      {{"noise", GrowthSplit::noise}, {"even", GrowthSplit::even}, {"uneven", GrowthSplit::uneven}},
      "how copies share a weight");
  key.real("noise_db", &G::noise_db, any(), "of a shared weight over its noise, in decibels");
  key.flag("projection", &G::projection,
           "a model without projection keeps its embedding size by a fixed average");
  key.flag("old_statistics", &G::old_statistics,
           "LayerNorm: mean and variance of the copies alone, for any width");
  key.whole("seed", &G::seed, at_least(0), "of the noise and of new numbers");
  Declare rate(
      group, [](auto& config, size_t i) -> auto& { return config.train.growth[i].schedule; });
  using S = GrowthSchedule;
  rate.whole("warmup_steps", &S::warmup_steps, at_least(0),
             "steps until the learning rate is at its peak again; with this, peak_rate and "
             "decay_steps 0, the schedule goes on as it was");
  rate.real("peak_rate", &S::peak_rate, at_least(0), "factor on learning_rate after growth; 0: 1");
  rate.whole("decay_steps", &S::decay_steps, at_least(0),
             "steps from here in which the rate falls; 0: to the end of the run's schedule");
}

void declare_parallel(Group& group) {
  Declare key(
      group, [](auto& config, size_t) -> auto& { return config.parallel; });
  using P = ParallelConfig;
  key.whole_or("auto", "dp", &P::dp, 1 << 20, "data-parallel ranks; auto: all ranks / tp");
  key.whole(
      "tp", &P::tp, between(1, 1024),
      "tensor-parallel ranks, all on one machine: they share the heads and feed-forward units of "
      "each layer, and the vocabulary");
  key.whole("threads", &P::threads, between(0, 1024),
            "compute threads of a rank; 0: the cores of a machine shared by its ranks");
  key.flag("overlap_sync", &P::overlap_sync,
           "sum over ranks while the last backward pass of a step goes on; the result is the same "
           "to the bit");
  key.flag("node_sync", &P::node_sync,
           "ranks of one machine add through shared memory, and one of them exchanges with the "
           "other machines; false: every rank exchanges with every other");
  key.words("sync_precision", &P::sync_precision,
            {{"fp32", SyncPrecision::fp32}, {"bf16", SyncPrecision::bf16}},
            "bf16: inexact; what travels between machines is rounded, and what was rounded away "
            "is added in the next step and before a checkpoint. Takes 4 bytes a parameter more. "
            "Only with optimizer.kind tiger");
  key.whole("check_replicas_every_steps", &P::check_replicas_every_steps, at_least(0),
            "steps between comparisons of what several ranks hold alike; 0: never");
}

void declare_checkpoint(Group& group) {
  Declare key(
      group, [](auto& config, size_t) -> auto& { return config.checkpoint; });
  using C = CheckpointConfig;
  key.whole("every_steps", &C::every_steps, at_least(0),
            "steps between checkpoints; 0: by time only");
  key.real("every_minutes", &C::every_minutes, at_least(0),
           "minutes between checkpoints; 0: by steps only. One is always written at the end");
  key.whole("keep", &C::keep, between(1, 1 << 20), "newest checkpoints that are kept");
  key.flag("keep_best", &C::keep_best, "also keep the one with the best evaluation");
  key.words(
      "async", &C::async,
      {{"auto", CheckpointAsync::automatic},
       {"on", CheckpointAsync::on},
       {"off", CheckpointAsync::off}},
      "write while training goes on, from a copy in memory of this rank's share of weights and "
      "optimizer state; auto: where a core is left over");
  key.whole("compression", &C::compression, between(0, 9), "deflate level; 0: none");
  key.bytes("chunk_size", &C::chunk_size,
            "bytes of a chunk of a compressed tensor; one chunk is packed by one rank");
  key.text("mpi_io_hints", &C::mpi_io_hints,
           "hints for MPI-IO as 'key=value, key=value', e.g. cb_nodes=4; empty: the library's own "
           "choice");
}

void declare_eval(Group& group) {
  Declare key(
      group, [](auto& config, size_t) -> auto& { return config.eval; });
  using E = EvalConfig;
  key.whole("every_steps", &E::every_steps, at_least(0),
            "steps between evaluations; 0: only at the end");
  key.whole("chunk_tokens", &E::chunk_tokens, between(0, 1 << 30),
            "tokens that a rank encodes at once in evaluation; 0: train.chunk_tokens");
}

void declare_runtime(Group& group) {
  Declare key(
      group, [](auto& config, size_t) -> auto& { return config.runtime; });
  using R = RuntimeConfig;
  key.real("liveness_seconds", &R::liveness_seconds, above(0),
           "a rank whose heartbeat stops for so long ends the job");
  key.real("progress_seconds", &R::progress_seconds, above(0),
           "a rank that stays in the same phase for so long without advance ends the job");
  key.flag("check_collectives", &R::check_collectives,
           "compare every collective over its ranks before it starts (slow: for tests)");
  key.flag(
      "tune", &R::tune,
      "on a GPU: before the first step, time the algorithms for each product of the model and "
      "the loss, and take the fastest; off: the library's first, but for those that a checkpoint "
      "has chosen");
  key.words(
      "attention", &R::attention,
      {{"auto", AttentionChoice::automatic},
       {"own", AttentionChoice::own},
       {"cudnn", AttentionChoice::cudnn}},
      "who computes attention in bf16 on a GPU: own kernels, cuDNN where it can, or by length "
      "whichever was faster when it was timed at the start");
  key.whole("log_every", &R::log_every, at_least(0),
            "steps between lines of the log; 0: about 100 lines a run");
}

std::vector<Group> declare_all() {
  struct Entry {
    const char* name;
    const char* doc;
    void (*declare)(Group&);
  };
  const Entry entries[] = {
      {"model", "The encoder.", declare_model},
      {"data", "What is trained and evaluated on.", declare_data},
      {"data.sources", "One entry for each file or package of pairs.", declare_sources},
      {"loss", "The contrastive loss over the global batch.", declare_loss},
      {"optimizer", "How the weights move. All keys that count steps count optimizer steps.",
       declare_optimizer},
      {"optimizer.groups",
       "Multipliers for some parameters; the first entry that matches a parameter applies.",
       declare_parameter_groups},
      {"optimizer.schedule_points", "Points of the piecewise schedule.", declare_schedule_points},
      {"train", "Length, batch and memory of the run.", declare_train},
      {"train.growth",
       "Growth during the run, as of `amur widen` (growth.md); an entry leaves the list of the "
       "configuration in a checkpoint once it is done.",
       declare_growth},
      {"parallel", "The grid of ranks.", declare_parallel},
      {"checkpoint", "When checkpoints are written and how many are kept.", declare_checkpoint},
      {"eval", "When the model is evaluated.", declare_eval},
      {"runtime", "Watching over the job.", declare_runtime},
  };
  std::vector<Group> groups;
  for (const Entry& entry : entries) {
    Group group;
    group.name = entry.name;
    group.doc = entry.doc;
    entry.declare(group);
    groups.push_back(std::move(group));
  }
  return groups;
}

}  // namespace

const std::vector<Group>& schema() {
  static const std::vector<Group> groups = declare_all();
  return groups;
}

const Key* Group::find(std::string_view key_name) const {
  for (const Key& key : keys)
    if (key.name == key_name) return &key;
  return nullptr;
}

const Group* find_group(std::string_view name) {
  for (const Group& group : schema())
    if (group.name == name) return &group;
  return nullptr;
}

}  // namespace amur::config
