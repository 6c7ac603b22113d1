#include "tests/bench/bench_step.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "src/core/error.h"

namespace amur {

BenchTrainer::BenchTrainer(Config config, Precision precision, ProcessGrid& grid, Runtime& runtime,
                           Device device)
    : config_(std::move(config)),
      grid_(grid),
      stream_(device),
      model_(config_, precision, nullptr, device),
      optimizer_(Optimizer::make(config_.optimizer, model_.parameters(),
                                 config_.loss.scale_learning_rate, nullptr, config_.train.seed)),
      two_pass_(model_, config_, grid.dp(), runtime) {
  model_.initialise(config_.train.seed);
  for (Parameter& p : model_.parameters())
    if (p.kind == ParamKind::embedding)
      touched_.push_back(Tensor::zeros({p.value.view().rows()}, DType::u8));
  // The loss stage as it is, between two looks at the clock.
  two_pass_.set_loss_stage([this](const ContrastiveInput& input, TensorView dq, TensorView dk) {
    stream_.synchronize();
    pass1_end_ = step_watch_.elapsed();
    const ContrastiveOutput out =
        contrastive_loss(config_.loss, model_.log_scale_value(), model_.loss_bias_value(), input,
                         dq, dk, grid_.dp());
    stream_.synchronize();
    loss_end_ = step_watch_.elapsed();
    return out;
  });
}

BenchStep BenchTrainer::step(const LocalBatch& batch, int64_t activation_budget) {
  config_.train.activation_budget = activation_budget;
  BenchStep result;
  StepTimes host;  // of the calls, which on a GPU return before the work is done
  stream_.synchronize();
  step_watch_.lap();
  touch(batch);
  result.times.data = step_watch_.elapsed();
  const BatchGradient gradient = two_pass_.pass1(batch, step_, host);
  AMUR_CHECK(gradient.finite, "step {}: the loss is not finite", step_);
  result.times.pass1 = pass1_end_ - result.times.data;
  result.times.loss = loss_end_ - pass1_end_;
  const double begin = step_watch_.elapsed();
  std::vector<TensorView> touched(touched_.begin(), touched_.end());
  optimizer_->begin_step(step_, 1, touched, grid_.dp());
  stream_.synchronize();
  const double backward = step_watch_.elapsed();
  two_pass_.pass2(host);
  stream_.synchronize();
  const double update = step_watch_.elapsed();
  optimizer_->finish_step(step_, 1e-3, grid_.dp());
  stream_.synchronize();
  result.seconds = step_watch_.elapsed();
  result.times.pass2 = update - backward;
  result.times.update = result.seconds - update + backward - begin;
  result.times.loss += begin - loss_end_;
  result.forward_flops = gradient.forward_flops;
  result.tokens = static_cast<double>(gradient.tokens);
  result.loss = gradient.loss.loss;
  result.chunks = gradient.chunks;
  result.recomputed = gradient.recomputed;
  ++step_;
  return result;
}

size_t BenchTrainer::weight_bytes() {
  size_t bytes = 0;
  for (const Parameter& p : model_.parameters()) bytes += p.value.bytes();
  return bytes;
}

DType BenchTrainer::sinks() {
  for (const OptimizerSlot& slot : optimizer_->slots())
    if (slot.parameter->kind == ParamKind::weight) return slot.value.dtype();
  return model_.parameters_dtype();
}

int64_t BenchTrainer::activation_bytes(const LocalBatch& batch) {
  size_t bytes = 0;
  for (const Chunk& chunk : plan_chunks(batch, config_.train.chunk_tokens, false))
    bytes += model_.tower(0).saved_bytes(chunk.tokens, std::ssize(chunk.units), model_.dtype());
  return static_cast<int64_t>(bytes);
}

void BenchTrainer::touch(const LocalBatch& batch) {
  for (Tensor& t : touched_) fill_zero(t);
  for (const int32_t id : batch.tokens) touched_[0].as<uint8_t>()[id] = 1;
  int32_t longest = 0;
  for (const auto* units : {&batch.queries, &batch.documents})
    for (const TextUnit& u : *units) longest = std::max(longest, u.length);
  std::fill_n(touched_[1].as<uint8_t>(), longest, uint8_t{1});
}

LocalBatch random_batch(int64_t pairs, int64_t mean, int64_t longest, int64_t vocabulary,
                        uint64_t seed) {
  constexpr double kSigma = 0.7;
  const RandomKey lengths = RandomKey(seed).fold(1), ids = RandomKey(seed).fold(2);
  LocalBatch batch;
  batch.global_queries = pairs;
  for (int64_t unit = 0; unit < 2 * pairs; ++unit) {
    const auto counter = static_cast<uint64_t>(unit);
    TextUnit text;
    text.sample = unit / 2;
    text.view = unit % 2 == 0 ? kViewQuery : kViewPositive;
    text.first = static_cast<int32_t>(batch.tokens.size());
    text.text_id = counter + 1;
    double length = static_cast<double>(mean);
    if (longest > mean)  // the mean of the log-normal distribution, but for what is cut off
      length *= std::exp(kSigma * lengths.normal(counter) - kSigma * kSigma / 2);
    text.length = static_cast<int32_t>(
        std::clamp(std::round(length), 2.0, static_cast<double>(std::max(mean, longest))));
    for (int32_t k = 0; k < text.length; ++k)
      batch.tokens.push_back(static_cast<int32_t>(
          ids.below(static_cast<uint64_t>(text.first + k), static_cast<uint64_t>(vocabulary))));
    (unit % 2 == 0 ? batch.queries : batch.documents).push_back(text);
    if (unit % 2 == 0) batch.positive.push_back(static_cast<int32_t>(unit / 2));
  }
  return batch;
}

}  // namespace amur
