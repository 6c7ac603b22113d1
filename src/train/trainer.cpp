#include "src/train/trainer.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <limits>
#include <nlohmann/json.hpp>
#include <utility>

#include "comm/runtime.h"
#include "src/core/gpu.h"
#include "src/core/log.h"
#include "src/core/process.h"
#include "src/train/attention_choices.h"
#include "src/train/checkpoint/checkpoint_writer.h"
#include "src/train/checkpoint/run_folder.h"
#include "src/train/growth/run_growth.h"
#include "src/train/huggingface/model_class.h"
#include "src/train/optimizer/optimizer.h"
#include "src/train/product_choices.h"
#include "src/train/replica_check.h"
#include "src/train/run_record.h"
#include "src/train/session.h"
#include "src/train/step_report.h"
#include "src/train/stop_signal.h"
#include "src/train/stopwatch.h"
#include "src/train/time_limit.h"
#include "src/train/two_pass.h"

namespace amur {
namespace {

constexpr const char* kWrittenBy = "amur " AMUR_VERSION;

const char* text_of(StatePrecision state) {
  switch (state) {
    case StatePrecision::fp32:
      return "";
    case StatePrecision::bf16_weights:
      return "; weights in bf16, rounded stochastically";
    case StatePrecision::bf16:
      return "; weights in bf16, rounded stochastically, and momenta in bf16";
  }
  return "";
}

class Trainer {
 public:
  Trainer(Config config, const TrainOptions& options, CommBackend backend, Runtime& runtime)
      : config_(std::move(config)),
        options_(options),
        runtime_(runtime),
        device_(device_of_rank(options.gpus, runtime)),
        grid_(start_grid(config_, backend, runtime, device_)),
        folder_(options.run_dir, *grid_) {}

  TrainResult run();

 private:
  void find_resume_point();
  void check_resumed_config(const CheckpointInfo& saved);
  void open();
  void build_model();
  void plan_budgets();
  void grow();
  void make_choices();
  void print_banner();
  void print_model();
  bool step();
  void skip_step(const std::string& why);
  void touch(const LocalBatch& batch);
  void record(const StepReport& report);
  void save_checkpoint();
  void run_evaluation();
  // What all ranks must decide alike after a step.
  enum Wish : int64_t { kNothing = 0, kSave = 1, kStop = 2, kFail = 3, kLost = 4 };
  Wish agree_on_wish();
  void leave_lost_step() const;

  Config config_;
  TrainOptions options_;
  Runtime& runtime_;
  const Device device_;
  std::unique_ptr<ProcessGrid> grid_;
  RunFolder folder_;
  StopSignal stop_signal_;
  TimeLimit time_limit_;

  std::optional<std::string> resume_from_;
  CheckpointInfo info_;  // state of the run: step, position, history
  int64_t first_step_ = 0, total_steps_ = 0, schedule_steps_ = 0, skipped_ = 0;
  int64_t saved_step_ = -1;
  std::string growth_record_;      // of a growth right before the next step
  double checkpoint_seconds_ = 0;  // since the last step

  std::unique_ptr<Dataset> data_;
  std::unique_ptr<Tokenizer> tokenizer_;
  std::unique_ptr<EmbeddingModel> model_;
  std::unique_ptr<Optimizer> optimizer_;
  std::unique_ptr<BatchStream> stream_;
  Budgets budgets_;
  std::unique_ptr<TwoPass> two_pass_;
  std::unique_ptr<StepReporter> reporter_;
  std::unique_ptr<CheckpointWriter> writer_;
  std::unique_ptr<RunRecord> record_;
  std::optional<EvalSet> eval_set_;
  std::vector<Tensor> touched_;  // per embedding table: [rows] u8
  Stopwatch since_checkpoint_;
  TrainResult result_;
};

void Trainer::find_resume_point() {
  if (options_.resume == "never") {
    if (folder_.has_checkpoints())
      throw UsageError(
          "--resume never: '{}' already holds checkpoints; choose another --run-dir or remove them",
          options_.run_dir);
    return;
  }
  if (options_.resume != "auto") {
    resume_from_ = resolve_checkpoint(options_.resume);
    return;
  }
  // One rank looks, so that all go on from the same file.
  std::string newest;
  if (grid_->world().rank() == 0)
    newest = Checkpoint::newest_complete(folder_.checkpoints_dir()).value_or("");
  grid_->world().broadcast(newest, 0);
  if (!newest.empty()) resume_from_ = newest;
}

void Trainer::check_resumed_config(const CheckpointInfo& saved) {
  const Config before = parse_config(saved.config_yaml, *resume_from_, {});
  std::string fixed;
  for (const ConfigDifference& d : compare_configs(before, config_)) {
    if (d.fixed)
      fixed += fmt::format("\n  {}: {} in the checkpoint, {} now", d.key, d.saved, d.now);
    else
      Log::info("resume: {} changes from {} to {}", d.key, d.saved, d.now);
  }
  if (!fixed.empty())
    throw UsageError(
        "'{}' was trained with other values of keys that fix the model or the order of the "
        "data:{}\n"
        "use the same values, or another --run-dir{}",
        *resume_from_, fixed,
        saved.lineage.empty() ? "" : "; the model has grown (amur inspect shows how)");
}

// The data and the vocabulary.
void Trainer::open() {
  if (resume_from_) {
    runtime_.set_phase("reading the checkpoint");
    info_ = Checkpoint::read_info(*resume_from_, grid_.get());
  }
  config_ = config_behind_growth(config_, info_, resume_from_.value_or(""));
  if (resume_from_) check_resumed_config(info_);
  runtime_.set_phase("opening the data");
  data_ = std::make_unique<Dataset>(config_.data, grid_->world(), grid_->node());
  if (data_->samples() == 0) throw UsageError("data.sources: no training pairs were found");
  Log::info("{}", data_->report());
  if (resume_from_ && info_.data_fingerprint != data_->fingerprint())
    throw UsageError("the data files changed since '{}' was written:\n  then {}\n  now  {}",
                     *resume_from_, info_.data_fingerprint, data_->fingerprint());

  runtime_.set_phase("vocabulary");
  if (resume_from_ && !info_.tokenizer.empty())
    tokenizer_ = Tokenizer::from_bytes(info_.tokenizer.begin()->second, *resume_from_);
  else
    tokenizer_ = make_tokenizer(config_, *data_, grid_->world());
  config_.model.vocab = tokenizer_->vocab_size();
}

// What follows from the configuration and, where there is one, from the checkpoint.
void Trainer::build_model() {
  if (resume_from_) {
    info_ = Checkpoint::read_info(*resume_from_, grid_.get());
    growth_record_ = growth_record(info_);
  }
  model_ =
      std::make_unique<EmbeddingModel>(config_, config_.train.precision, &grid_->tp(), device_);
  // A checkpoint's parameters carry the groups already, and what growth has changed.
  if (resume_from_)
    Checkpoint::load_rules(*resume_from_, model_->parameters(), *grid_);
  else
    begin_rules(config_, *model_, *grid_);
  optimizer_ = Optimizer::make(config_.optimizer, model_->parameters(),
                               config_.loss.scale_learning_rate, model_->tp(), config_.train.seed);
  SyncOptions sync;
  // The side stream of the CPU takes no bf16.
  const bool bf16_sums =
      config_.optimizer.state == StatePrecision::bf16 && device_ == Device::cpu();
  if (grid_->dp().overlaps(device_) && !bf16_sums)
    sync.stream = grid_->dp().side_stream(
        {.overlap = config_.parallel.overlap_sync, .through_nodes = config_.parallel.node_sync});
  sync.groups = model_->backward_groups();
  sync.rounded = config_.parallel.sync_precision == SyncPrecision::bf16;
  if (sync.rounded && device_ != Device::cpu())
    throw UsageError(
        "parallel.sync_precision: gradients on a GPU cannot travel as bf16; use fp32, or --device "
        "cpu");
  optimizer_->set_sync(std::move(sync));
  if (resume_from_) {
    if (info_.optimizer != optimizer_->name())
      throw UsageError("optimizer.kind: '{}' was trained with {}, not {}", *resume_from_,
                       info_.optimizer, optimizer_->name());
    const std::vector<OptimizerSlot> slots = optimizer_->slots();
    runtime_.set_phase("reading the checkpoint");
    Checkpoint::load(*resume_from_, model_->parameters(), slots, *grid_);
    model_->set_constants(info_.constants);
  } else {
    begin_model(config_, *model_, *grid_);
    if (const std::string& start = config_.train.start_from; !start.empty()) {
      const CheckpointInfo from = start_info(start, grid_.get());
      info_.lineage = from.lineage;
      info_.carried = from.carried;
      Log::info("weights and vocabulary of '{}', step {}", start, from.step);
    }
    info_.seed = config_.train.seed;
    info_.optimizer = optimizer_->name();
    info_.tokenizer = {{tokenizer_->kind(), tokenizer_->serialised()}};
    info_.data_fingerprint = data_->fingerprint();
  }
  info_.config_yaml = to_yaml(config_);
  info_.constants = model_->constants();
  info_.written_by = kWrittenBy;
  info_.world_size = grid_->world().size();
  info_.dp = grid_->shape().dp;
  info_.tp = grid_->shape().tp;

  const int64_t per_epoch = BatchStream::batches_per_epoch(*data_, config_);
  total_steps_ =
      config_.train.steps > 0
          ? config_.train.steps
          : static_cast<int64_t>(std::ceil(config_.train.epochs * static_cast<double>(per_epoch) /
                                           static_cast<double>(config_.train.accumulate)));
  schedule_steps_ = config_.train.schedule_steps > 0 ? config_.train.schedule_steps : total_steps_;
  saved_step_ = resume_from_ ? info_.step : -1;

  touched_.clear();
  for (Parameter& p : model_->parameters())
    if (p.kind == ParamKind::embedding)
      touched_.push_back(Tensor::zeros({p.value.shape()[0]}, DType::u8));
  Config of_stream = config_;
  // A GPU takes more tokens than one thread makes, and leaves the cores idle.
  if (of_stream.data.threads == 0 && device_ != Device::cpu())
    of_stream.data.threads = runtime_.threads();
  stream_ = std::make_unique<BatchStream>(*data_, *tokenizer_, of_stream, grid_->dp_rank(),
                                          grid_->shape().dp, info_.position);
  two_pass_ = std::make_unique<TwoPass>(*model_, config_, grid_->dp(), runtime_,
                                        [] { return StopSignal::received(); });
  two_pass_->set_pass2_check([this] { leave_lost_step(); });
  writer_ = std::make_unique<CheckpointWriter>(config_, model_->parameters(), optimizer_->slots(),
                                               info_.optimizer, folder_, *grid_, runtime_);
}

void Trainer::plan_budgets() {
  budgets_ =
      amur::plan_budgets({.config = &config_,
                          .model = model_.get(),
                          .unwritten_bytes = resume_from_ ? 0 : optimizer_->state_bytes(),
                          .device_name = device_name(device_),
                          .first_batch =
                              [this] {
                                return BatchStream(*data_, *tokenizer_, config_, grid_->dp_rank(),
                                                   grid_->shape().dp, info_.position)
                                    .next();
                              }},
                         *grid_, runtime_);
  two_pass_->set_budgets(budgets_);
}

// All that are made by measuring, for the model as it is now.
void Trainer::make_choices() {
  choose_attention_engines(config_, device_, *grid_, runtime_, *record_);
  plan_budgets();
  DType sinks = model_->parameters_dtype();
  for (const OptimizerSlot& slot : optimizer_->slots())
    if (slot.parameter->kind == ParamKind::weight) sinks = slot.value.dtype();
  choose_product_algorithms(config_, *model_, budgets_.chunk_tokens, sinks, *grid_, runtime_,
                            *record_);
  record_->settle(info_);
}

void Trainer::print_model() {
  const int64_t parameters = model_->parameters().global_elements();
  Log::info(
      "model: {} layers, width {}, vocabulary {}, {:.2f} M parameters; for Hugging Face tools: {}",
      config_.model.layers, config_.model.hidden, config_.model.vocab,
      static_cast<double>(parameters) * 1e-6, interchange_class(config_.model));
  if (config_.model.local_attention > 0) Log::info("attention: {}", config_.model.attention_text());
  size_t weights = 0;
  int64_t elements = 0;
  for (const Parameter& p : model_->parameters()) {
    weights += p.value.bytes();
    elements += p.value.elements();
  }
  const size_t state = optimizer_->state_bytes();
  Log::info(
      "training state of a rank: {:.1f} MB of weights, {:.1f} MB of {}, {:.1f} bytes a parameter{}",
      static_cast<double>(weights) * 1e-6, static_cast<double>(state) * 1e-6, optimizer_->name(),
      static_cast<double>(weights + state) / static_cast<double>(elements),
      text_of(config_.optimizer.state));
}

void Trainer::print_banner() {
  print_model();
  if (writer_->beside_training())
    Log::info("checkpoints are written beside the training: {:.1f} MB a rank for the copy",
              static_cast<double>(writer_->snapshot_bytes()) * 1e-6);
  Log::info("{} ranks (dp {}, tp {}), {}", grid_->world().size(), grid_->shape().dp,
            grid_->shape().tp, runtime_.threads_text());
  Log::info("{} steps of {} x {} pairs, {} steps an epoch, from step {}", total_steps_,
            config_.train.accumulate, config_.train.batch_size,
            BatchStream::batches_per_epoch(*data_, config_), first_step_);
  if (grid_->node().size() != grid_->world().size()) Log::info("hosts: {}", runtime_.nodes());
}

// Marks the embedding rows of this rank that this batch will touch.
void Trainer::touch(const LocalBatch& batch) {
  const auto rows_of = [&](const Parameter* table) -> Tensor* {
    if (!table) return nullptr;
    size_t index = 0;
    for (Parameter& p : model_->parameters()) {
      if (p.kind != ParamKind::embedding) continue;
      if (&p == table) return &touched_[index];
      ++index;
    }
    return nullptr;
  };
  for (int tower = 0; tower < 2; ++tower) {
    Encoder& encoder = model_->tower(tower);
    Tensor* tokens = rows_of(&encoder.token_table());
    const int64_t first =
        slab_of(encoder.token_table(), model_->tp_rank(), model_->tp_size()).first[0];
    Tensor* positions = rows_of(encoder.position_table());
    for (const TextUnit& unit : tower == 0 ? batch.queries : batch.documents)
      for (int32_t k = 0; k < unit.length; ++k) {
        const int64_t row = batch.tokens[static_cast<size_t>(unit.first + k)] - first;
        if (row >= 0 && row < tokens->elements()) tokens->as<uint8_t>()[row] = 1;
        if (positions) positions->as<uint8_t>()[k] = 1;
      }
  }
}

void Trainer::skip_step(const std::string& why) {
  if (++skipped_ > config_.train.max_skipped_steps)
    throw NumericError(
        "step {}: {}; {} steps in a row were skipped (train.max_skipped_steps). The newest "
        "checkpoint is intact; a lower optimizer.learning_rate or loss.scale_max may help",
        info_.step + 1, why, skipped_);
  Log::warn("step {}: {}; the step is skipped", info_.step + 1, why);
}

// One optimizer step. False: a stop was asked for before anything was accumulated.
bool Trainer::step() {
  StepReport report;
  const SideTraffic before = grid_->dp().side_traffic();
  Stopwatch whole, watch;
  const double cpu_before = cpu_seconds();
  const auto k = static_cast<size_t>(config_.train.accumulate);
  std::vector<LocalBatch> batches;
  for (size_t i = 0; i < k; ++i) batches.push_back(stream_->next());
  for (Tensor& t : touched_) fill_zero(t);
  for (const LocalBatch& batch : batches) touch(batch);
  report.times.data = watch.lap();

  bool begun = false;
  size_t finite = 0;
  for (const LocalBatch& batch : batches) {
    const BatchGradient gradient = two_pass_->pass1(batch, info_.step, report.times);
    if (gradient.abandoned) {
      // With several batches a step, sums already begun cannot be undone: finish with what there
      // is.
      if (!begun) return false;
      break;
    }
    if (!gradient.finite) continue;
    watch.lap();
    if (!begun) {
      std::vector<TensorView> touched(touched_.begin(), touched_.end());
      optimizer_->begin_step(info_.step, 1.0 / static_cast<double>(k), touched, grid_->dp());
      report.times.update += watch.lap();
      begun = true;
    }
    if (&batch == &batches.back() && config_.parallel.overlap_sync)
      two_pass_->pass2(report.times,
                       [&](size_t group) { optimizer_->group_done(group, grid_->dp()); });
    else
      two_pass_->pass2(report.times);
    report.add(gradient, batch);
    ++finite;
  }
  if (begun) {
    runtime_.set_phase(fmt::format("step {}, update", info_.step + 1));
    watch.lap();
    const double factor = schedule_factor(config_.optimizer, info_.step, schedule_steps_);
    optimizer_->sum_over_ranks(info_.step, grid_->dp());
    report.times.sync = watch.lap();
    const SideTraffic after = grid_->dp().side_traffic();
    report.sync = {after.seconds - before.seconds, after.bytes_sent - before.bytes_sent};
    optimizer_->update(info_.step, factor * config_.optimizer.learning_rate);
    report.scale = std::exp(model_->clamp_scale(config_.loss.scale_max));
    report.times.update += watch.lap();
    report.learning_rate = factor * config_.optimizer.learning_rate;
    report.momentum_change = optimizer_->last_gradient_norm();
    skipped_ = 0;
  } else {
    report.scale = std::exp(model_->log_scale_value());
  }
  if (finite < k)
    skip_step(
        fmt::format("the loss or its gradient is not finite in {} of {} batches", k - finite, k));
  ++info_.step;
  info_.position = batches.back().end;
  report.step = info_.step;
  report.checkpoint_seconds = std::exchange(checkpoint_seconds_, 0);
  report.growth = std::exchange(growth_record_, "");
  report.position = info_.position;
  report.seconds = whole.elapsed();
  report.cpu_seconds = cpu_seconds() - cpu_before;
  if (device_ != Device::cpu()) report.gpu_bytes = gpu_backend().peak_bytes(device_);
  time_limit_.step_took(report.seconds);
  record(report);
  return true;
}

void Trainer::record(const StepReport& report) {
  reporter_->add(report, *grid_);
  if (grid_->world().rank() == 0) folder_.append_metrics(reporter_->last_line());
  result_.loss = report.loss;
}

Trainer::Wish Trainer::agree_on_wish() {
  int64_t wish = kNothing;
  const CheckpointConfig& c = config_.checkpoint;
  if (c.every_steps > 0 && info_.step % c.every_steps == 0) wish = kSave;
  // The clocks differ between ranks: the first one that finds it due decides for all.
  if (c.every_minutes > 0 && since_checkpoint_.elapsed() > 60 * c.every_minutes) wish = kSave;
  time_limit_.write_took(writer_->last_seconds());
  if (StopSignal::received() || time_limit_.no_step_fits()) wish = kStop;
  if (writer_->failed()) wish = kFail;
  if (!folder_.in_sight()) wish = kLost;
  return static_cast<Wish>(grid_->world().max(wish));
}

// In pass 2, where a step can neither be abandoned nor, so late, be finished.
void Trainer::leave_lost_step() const {
  if (!StopSignal::received() || !time_limit_.step_is_lost()) return;
  Log::info("{:.0f} s are left of this job, the last step took {:.0f} s",
            time_limit_.seconds_left(), time_limit_.last_step());
  throw Interrupted(
      "this step cannot be finished before the job ends: leaving at once; the same command goes on "
      "from the newest complete checkpoint in {}",
      folder_.checkpoints_dir());
}

void Trainer::save_checkpoint() {
  if (saved_step_ == info_.step) return;
  Stopwatch watch;
  optimizer_->settle(grid_->dp());
  writer_->save(info_);
  checkpoint_seconds_ += watch.elapsed();
  saved_step_ = info_.step;
  result_.checkpoint = folder_.checkpoint_path(info_.step);
  since_checkpoint_.lap();
}

// From this step's checkpoint to the grown one, which takes its place; the run goes on from that.
void Trainer::grow() {
  save_checkpoint();
  writer_->wait();
  Stopwatch watch;
  writer_.reset();
  two_pass_.reset();
  stream_.reset();
  optimizer_.reset();
  model_.reset();
  const std::string grown = folder_.checkpoint_path(info_.step);
  config_ = grow_run(config_, result_.checkpoint, grown, *tokenizer_, *grid_, runtime_);
  folder_.publish(info_.step, config_.checkpoint, info_.best);
  resume_from_ = result_.checkpoint = grown;
  build_model();
  make_choices();
  print_model();
  checkpoint_seconds_ += watch.elapsed();
}

void Trainer::run_evaluation() {
  if (!eval_set_) eval_set_ = data_->eval_set();
  if (eval_set_->queries.empty()) {
    Log::info("evaluation: the sources hold no evaluation pairs");
    return;
  }
  Config config = config_;
  config.train.chunk_tokens = budgets_.chunk_tokens;
  TextEmbedder embedder(*model_, *tokenizer_, config, grid_->dp(), runtime_);
  const Evaluation e = evaluate(embedder, *eval_set_, grid_->world());
  Log::info("step {}: evaluation in {:.1f} s\n{}", info_.step, e.seconds, to_table(e));
  const double recall = e.query_to_document.recall_1;
  if (auto it = info_.best.find("recall@1"); it == info_.best.end() || recall > it->second)
    info_.best = {{"recall@1", recall}, {"step", static_cast<double>(info_.step)}};
  if (grid_->world().rank() == 0) folder_.append_evaluation(info_.step, to_json(e));
  result_.evaluation = e;
}

TrainResult Trainer::run() {
  Stopwatch whole;
  find_resume_point();
  const std::string config_yaml = to_yaml(config_);
  open();
  record_ = std::make_unique<RunRecord>(resume_from_ ? &info_ : nullptr, folder_, *grid_, runtime_,
                                        device_);
  build_model();
  first_step_ = info_.step;
  reporter_ = std::make_unique<StepReporter>(config_, first_step_, total_steps_, info_.metrics);
  folder_.start(config_yaml, info_.step);
  make_choices();
  print_banner();
  if (resume_from_) Log::info("resumed from {} at step {}", *resume_from_, info_.step);
  result_.first_step = info_.step;
  if (resume_from_) result_.checkpoint = *resume_from_;

  since_checkpoint_.lap();
  bool stopped = StopSignal::received() && first_step_ == total_steps_;
  while (info_.step < total_steps_ && !stopped) {
    if (growth_is_due(config_, info_.step)) grow();
    stopped = !step();
    if (stopped) break;
    const bool last = info_.step == total_steps_;
    if (const int64_t every = config_.parallel.check_replicas_every_steps;
        every > 0 && info_.step % every == 0)
      require_equal_replicas(model_->parameters(), optimizer_->slots(), optimizer_->name(),
                             info_.step, *grid_);
    if (last || (config_.eval.every_steps > 0 && info_.step % config_.eval.every_steps == 0))
      run_evaluation();
    const Wish wish = agree_on_wish();
    if (wish == kLost) folder_.require_in_sight();
    // Its failure on this rank is that of all ranks, once they wait for it.
    if (wish == kFail) writer_->wait();
    if (last || wish >= kSave) save_checkpoint();
    stopped = !last && wish == kStop;
  }
  Log::progress("");
  if (stopped) {
    const std::string why =
        StopSignal::received() ? StopSignal::name() : std::string("the time limit of the job");
    if (grid_->world().all_agree(!time_limit_.no_checkpoint_fits()))
      save_checkpoint();
    else
      Log::info("{:.0f} s are left of this job, too few for a checkpoint",
                time_limit_.seconds_left());
    Log::info("stopped by {} at step {}; the same command goes on from {}", why, info_.step,
              result_.checkpoint.empty() ? "the beginning" : result_.checkpoint);
  } else if (!result_.evaluation) {
    Log::info("all {} steps are done", total_steps_);
    run_evaluation();
  }
  writer_->wait();
  result_.steps = info_.step;
  result_.interrupted = stopped;
  result_.seconds = whole.elapsed();
  reporter_->summary();
  return result_;
}

}  // namespace

TrainResult train(Config config, const TrainOptions& options, CommBackend backend,
                  Runtime& runtime) {
  runtime.set_phase("opening the run folder");
  return Trainer(std::move(config), options, backend, runtime).run();
}

std::string to_json(const TrainResult& r) {
  nlohmann::ordered_json j;
  j["steps"] = r.steps;
  j["first_step"] = r.first_step;
  j["interrupted"] = r.interrupted;
  j["checkpoint"] = r.checkpoint;
  j["loss"] = r.loss;
  j["seconds"] = r.seconds;
  if (r.evaluation) j["evaluation"] = nlohmann::ordered_json::parse(to_json(*r.evaluation));
  return j.dump(2);
}

}  // namespace amur
