#include "src/train/step_report.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>

#include "src/core/log.h"
#include "src/core/process.h"

namespace amur {
namespace {

std::string duration_text(double seconds) {
  const auto s = static_cast<int64_t>(seconds + 0.5);
  if (s >= 3600) return fmt::format("{}h{:02}m", s / 3600, s / 60 % 60);
  return fmt::format("{}m{:02}s", s / 60, s % 60);
}

}  // namespace

void StepReport::add(const BatchGradient& gradient, const LocalBatch& batch) {
  // Running mean over the batches of a step.
  ++batches;
  loss += (gradient.loss.loss - loss) / batches;
  gradient_norm += (gradient.gradient_norm - gradient_norm) / batches;
  pairs += static_cast<int64_t>(batch.queries.size());
  tokens += gradient.tokens;
  chunks += gradient.chunks;
  recomputed += gradient.recomputed;
  truncated += batch.truncated;
  forward_flops += gradient.forward_flops;
}

StepReporter::StepReporter(const Config& config, int64_t first_step, int64_t total_steps,
                           MetricsHistory& history)
    : config_(config), first_step_(first_step), total_steps_(total_steps), history_(history) {
  log_every_ = config.runtime.log_every > 0 ? config.runtime.log_every
                                            : std::max<int64_t>(1, total_steps / 100);
}

void StepReporter::add(const StepReport& r, ProcessGrid& grid) {
  Communicator& dp = grid.dp();
  Communicator& world = grid.world();
  const double pairs = static_cast<double>(dp.sum(r.pairs));
  const double tokens = static_cast<double>(dp.sum(r.tokens));
  const int64_t chunks = dp.sum(r.chunks), recomputed = dp.sum(r.recomputed);
  const int64_t truncated = dp.sum(r.truncated);
  // Backward costs twice the forward; recomputation is not counted as work.
  const double flops = 3 * world.sum(r.forward_flops);
  const int64_t sync_bytes = world.sum(r.sync.bytes_sent);
  const double seconds = world.max(r.seconds), cpu = world.sum(r.cpu_seconds);
  const double memory = world.max(static_cast<double>(peak_resident_bytes()));
  const double gpu_memory = world.max(static_cast<double>(r.gpu_bytes));
  const double loss = r.batches > 0 ? r.loss : std::numeric_limits<double>::quiet_NaN();

  // One list of columns for metrics.jsonl and the checkpoint's history.
  const std::vector<std::pair<const char*, double>> columns = {
      {"step", static_cast<double>(r.step)},
      {"epoch", static_cast<double>(r.position.epoch)},
      {"samples_seen", static_cast<double>(r.position.samples_seen)},
      {"loss", loss},
      {"scale", r.scale},
      {"learning_rate", r.learning_rate},
      {"embedding_gradient_norm", r.gradient_norm},
      {"momentum_change", r.momentum_change},
      {"pairs_per_second", pairs / seconds},
      {"tokens_per_second", tokens / seconds},
      {"model_flops_per_second", flops / seconds},
      {"model_flops", flops},
      {"chunks", static_cast<double>(chunks)},
      {"recomputed_chunks", static_cast<double>(recomputed)},
      {"truncated_texts", static_cast<double>(truncated)},
      {"peak_resident_bytes", memory},
      {"peak_gpu_bytes", gpu_memory},
      {"seconds", seconds},
      {"cpu_seconds", cpu},
      {"seconds_data", r.times.data},
      {"seconds_pass1", r.times.pass1},
      {"seconds_loss", r.times.loss},
      {"seconds_pass2", r.times.pass2},
      {"seconds_sync", r.times.sync},
      {"seconds_update", r.times.update},
      {"seconds_sync_under_way", r.sync.seconds},
      {"sync_bytes_sent", static_cast<double>(sync_bytes)},
      {"seconds_checkpoint", r.checkpoint_seconds}};
  nlohmann::ordered_json json;
  if (history_.columns.empty())
    for (const auto& [name, value] : columns) {
      history_.columns.emplace_back(name);
      history_.values.emplace_back();
    }
  for (const auto& [name, value] : columns) {
    if (value == std::floor(value) && std::abs(value) < 1e15)
      json[name] = static_cast<int64_t>(value);
    else
      json[name] = value;  // not a number becomes null
    const auto at = std::find(history_.columns.begin(), history_.columns.end(), name);
    if (at != history_.columns.end())
      history_.values[static_cast<size_t>(at - history_.columns.begin())].push_back(value);
  }
  if (!r.growth.empty()) json["growth"] = nlohmann::ordered_json::parse(r.growth);
  line_ = json.dump();

  seconds_ += seconds;
  pairs_ += pairs;
  tokens_ += tokens;
  flops_ += flops;
  ++steps_;
  for (double StepTimes::*part : {&StepTimes::data, &StepTimes::pass1, &StepTimes::loss,
                                  &StepTimes::pass2, &StepTimes::sync, &StepTimes::update})
    sum_.*part += r.times.*part;
  if (std::isfinite(loss)) smooth_loss_ = steps_ == 1 ? loss : 0.95 * smooth_loss_ + 0.05 * loss;

  const double left =
      seconds_ / static_cast<double>(steps_) * static_cast<double>(total_steps_ - r.step);
  const std::string text = fmt::format(
      "step {}/{} | loss {:.4f} ({:.4f}) | scale {:.2f} | lr {:.2e} | {:.0f} pairs/s | {:.0f} "
      "tokens/s | {:.0f} MB{} | {} left",
      r.step, total_steps_, loss, smooth_loss_, r.scale, r.learning_rate, pairs / seconds,
      tokens / seconds, memory * 1e-6,
      gpu_memory > 0 ? fmt::format(", GPU {:.0f} MB", gpu_memory * 1e-6) : "", duration_text(left));
  Log::progress(text);
  if (!Log::on_terminal() &&
      (r.step % log_every_ == 0 || r.step == total_steps_ || r.step == first_step_ + 1))
    Log::info("{}", text);
}

void StepReporter::summary() const {
  if (steps_ == 0) return;
  const auto share = [&](double part) { return 100 * part / seconds_; };
  Log::info(
      "{} steps in {}: {:.0f} pairs/s, {:.0f} tokens/s, {:.1f} model GFLOP/s; data {:.0f} %, pass "
      "1 "
      "{:.0f} %, loss {:.0f} %, pass 2 {:.0f} %, sync {:.0f} %, update {:.0f} %",
      steps_, duration_text(seconds_), pairs_ / seconds_, tokens_ / seconds_,
      flops_ / seconds_ * 1e-9, share(sum_.data), share(sum_.pass1), share(sum_.loss),
      share(sum_.pass2), share(sum_.sync), share(sum_.update));
}

}  // namespace amur
