#include "src/train/two_pass.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <utility>

#include "comm/runtime.h"
#include "kernels/elementwise.h"
#include "kernels/rows.h"
#include "src/core/device_backend.h"
#include "src/train/optimizer/optimizer.h"
#include "src/train/stopwatch.h"

namespace amur {

TwoPass::TwoPass(EmbeddingModel& model, const Config& config, Communicator& dp, Runtime& runtime,
                 std::function<bool()> stop_requested)
    : model_(model),
      config_(config),
      dp_(dp),
      runtime_(runtime),
      budgets_(configured_budgets(config.train, model.device())),
      stop_requested_(std::move(stop_requested)),
      saved_(model.device()),
      scratch_(model.device()) {
  if (model.device() != Device::cpu()) copies_.emplace(model.device());
  loss_stage_ = [this](const ContrastiveInput& input, TensorView dq, TensorView dk) {
    return contrastive_loss(config_.loss, log_scale_, loss_bias_, input, dq, dk, dp_);
  };
}

Context TwoPass::context(const ChunkView& view, bool keep) {
  Context c;
  c.chunk = &view;
  c.saved = keep ? &saved_ : nullptr;
  c.scratch = &scratch_;
  c.dtype = model_.dtype();
  c.training = true;
  c.copies = copies_ ? &*copies_ : nullptr;
  c.tp = model_.tp();
  return c;
}

// Cuts the batch into chunks and decides which of them keep their activations: the last ones of
// pass 1, as many as the budget holds.
void TwoPass::plan() {
  const auto queries = static_cast<int32_t>(batch_->queries.size());
  chunks_.clear();
  for (Chunk& chunk : plan_chunks(*batch_, budgets_.chunk_tokens, model_.separate_towers())) {
    PlannedChunk planned;
    planned.tower = chunk.units.front() < queries ? 0 : 1;
    planned.chunk = std::move(chunk);
    chunks_.push_back(std::move(planned));
  }
  std::vector<int64_t> bytes;
  for (const PlannedChunk& planned : chunks_)
    bytes.push_back(static_cast<int64_t>(
        model_.tower(planned.tower)
            .saved_bytes(planned.chunk.tokens, static_cast<int64_t>(planned.chunk.units.size()),
                         model_.dtype())));
  // A tp group replays the same chunks, or its collectives would not meet; its ranks may hold
  // different numbers of heads.
  if (model_.tp() && !bytes.empty())
    model_.tp()->all_reduce(TensorView(bytes.data(), {std::ssize(bytes)}, DType::i64),
                            ReduceOp::max);
  int64_t kept = 0;
  for (size_t i = chunks_.size(); i-- > 0 && kept + bytes[i] <= budgets_.activation_budget;) {
    kept += bytes[i];
    chunks_[i].keep = true;
  }
  reserve(kept, bytes);
}

// One block for what is kept, or for the largest chunk that is computed twice once all of that is
// gone; a little more while the budget allows, for the next batch. Another one for what chunks
// needed so far beside it.
void TwoPass::reserve(int64_t kept, std::span<const int64_t> bytes) {
  if (bytes.empty()) return;
  const int64_t needed = std::max(kept, std::ranges::max(bytes));
  const int64_t spare =
      std::min(needed / 8, std::max<int64_t>(0, budgets_.activation_budget - needed));
  try {
    scratch_.reserve(scratch_.peak_bytes());
    saved_.reserve(static_cast<size_t>(needed + spare));
  } catch (const MemoryError& error) {  // the old block is free already
    const PlannedChunk& last = chunks_.back();
    throw_with_advice(error, model_.tower(last.tower), model_.dtype(), last.chunk, scratch_,
                      saved_.held_bytes() + scratch_.held_bytes());
  }
}

std::string memory_advice(int64_t tokens, size_t needed, size_t room) {
  const double fits = static_cast<double>(tokens) * static_cast<double>(room) /
                      static_cast<double>(std::max<size_t>(needed, 1));
  if (fits >= 1.1 * static_cast<double>(tokens))
    return fmt::format("set train.activation_budget to {}MiB at most", (room - needed) >> 20);
  return fmt::format(
      "the largest train.chunk_tokens that would fit is about {}, with train.activation_budget=0",
      static_cast<int64_t>(0.9 * fits));
}

void throw_with_advice(const MemoryError& error, const Encoder& tower, DType dtype,
                       const Chunk& chunk, const SavedTensors& scratch, size_t held) {
  const size_t kept =
      tower.saved_bytes(chunk.tokens, static_cast<int64_t>(chunk.units.size()), dtype);
  throw UsageError("{}; {}", error.what(),
                   memory_advice(chunk.tokens, kept + scratch.peak_bytes(), error.free() + held));
}

// What a chunk finds no memory for is told with what would fit in its place.
template <class F>
void TwoPass::with_advice(const PlannedChunk& planned, const F& compute) {
  try {
    compute();
  } catch (const MemoryError& error) {
    // The blocks of both stacks are about as large as these ever were.
    throw_with_advice(error, model_.tower(planned.tower), model_.dtype(), planned.chunk, scratch_,
                      saved_.peak_bytes() + scratch_.peak_bytes());
  }
}

// Embeds one chunk; its unit vectors and norms go to their rows.
void TwoPass::forward(PlannedChunk& planned, bool keep) {
  auto packed = std::make_unique<PackedChunk>(*batch_, planned.chunk, &*step_key_, model_.device());
  const ChunkView view = packed->view();
  ScratchScope scope(scratch_);
  const DType dtype = model_.parameters_dtype();
  const int64_t sequences = view.sequences();
  TensorView h = scope.tensor({sequences, model_.embedding_size()}, dtype);  // [S, e]
  TensorView norm = scope.tensor({sequences}, dtype);                        // [S]
  model_.tower(planned.tower).forward(context(view, keep), h);
  normalise_forward(h, h, norm);
  scatter_rows(h, planned.chunk.units, embeddings_);
  scatter_rows(norm, planned.chunk.units, norms_);
  if (keep) planned.packed = std::move(packed);
}

BatchGradient TwoPass::pass1(const LocalBatch& batch, int64_t step, StepTimes& times) {
  Stopwatch watch;
  batch_ = &batch;
  step_key_ = RandomKey(config_.train.seed)
                  .fold(static_cast<uint64_t>(RandomPurpose::dropout))
                  .fold(static_cast<uint64_t>(step));
  saved_.rewind(0);
  if (copies_) copies_->forget();
  // Read before the GPU has this batch to do, which would be waited for.
  log_scale_ = model_.log_scale_value();
  loss_bias_ = model_.loss_bias_value();
  plan();

  BatchGradient result;
  const auto units = static_cast<int64_t>(batch.queries.size() + batch.documents.size());
  const DType dtype = model_.parameters_dtype();
  embeddings_ = Tensor({units, model_.embedding_size()}, dtype, model_.device());
  norms_ = Tensor({units}, dtype, model_.device());
  result.texts = units;
  result.chunks = static_cast<int64_t>(chunks_.size());

  bool stop = false;
  for (size_t i = 0; i < chunks_.size() && !stop; ++i) {
    PlannedChunk& planned = chunks_[i];
    runtime_.set_phase(
        fmt::format("step {}, pass 1, chunk {}/{}", step + 1, i + 1, chunks_.size()));
    with_advice(planned, [&] { forward(planned, planned.keep); });
    result.tokens += planned.chunk.tokens;
    if (!planned.keep) ++result.recomputed;
    std::vector<int64_t> lengths;
    for (int32_t unit : planned.chunk.units)
      lengths.push_back(unit < static_cast<int32_t>(batch.queries.size())
                            ? batch.queries[unit].length
                            : batch.documents[unit - batch.queries.size()].length);
    result.forward_flops += model_.tower(planned.tower).forward_flops(lengths);
    if (!stop_requested_) continue;
    stop = stop_requested_();
    // The next chunk has collectives within the tp group.
    if (model_.tp()) stop = !model_.tp()->all_agree(!stop);
  }
  times.pass1 += watch.lap();

  runtime_.set_phase(fmt::format("step {}, loss stage", step + 1));
  if (stop_requested_ && !dp_.all_agree(!stop)) {
    result.abandoned = true;
    chunks_.clear();
    saved_.rewind(0);
    return result;
  }
  run_loss_stage(result);
  times.loss += watch.lap();
  return result;
}

void TwoPass::run_loss_stage(BatchGradient& result) {
  const auto queries = static_cast<int64_t>(batch_->queries.size());
  const auto documents = static_cast<int64_t>(batch_->documents.size());
  query_ids_.clear();
  document_ids_.clear();
  for (const TextUnit& u : batch_->queries) query_ids_.push_back(u.text_id);
  for (const TextUnit& u : batch_->documents) document_ids_.push_back(u.text_id);

  ContrastiveInput input;
  input.queries = embeddings_.view().slice(0, queries);
  input.documents = embeddings_.view().slice(queries, documents);
  input.query_ids = query_ids_;
  input.document_ids = document_ids_;
  input.positive = batch_->positive;
  input.other_first = batch_->other_first;
  input.other_positives = batch_->other_positives;

  gradients_ = Tensor(embeddings_.shape(), embeddings_.dtype(), model_.device());
  result.loss = loss_stage_(input, gradients_.view().slice(0, queries),
                            gradients_.view().slice(queries, documents));
  // dL/dz becomes dL/dh on its owner.
  normalise_backward(gradients_, embeddings_, norms_, gradients_);

  // Asked here, before anything is accumulated: a GEMM into the momentum cannot be undone.
  const double squares = sum_of_squares(gradients_);
  const bool finite = std::isfinite(result.loss.loss) && std::isfinite(squares) &&
                      std::isfinite(result.loss.scale_gradient);
  result.finite = dp_.all_agree(finite);
  if (model_.tp()) result.finite = model_.tp()->all_agree(result.finite);
  if (!result.finite) {
    chunks_.clear();
    saved_.rewind(0);
    return;
  }
  result.gradient_norm = std::sqrt(dp_.sum(squares));
  result.clip = clip_factor(config_.optimizer, result.gradient_norm);
  if (result.clip != 1) scale(result.clip, gradients_);
  scale_gradient_ = result.clip * result.loss.scale_gradient;
  bias_gradient_ = result.clip * result.loss.bias_gradient;
}

namespace {

// Where the sink is: nothing waits for a GPU.
void accumulate_scalar(Parameter* p, double gradient) {
  if (!p || !p->sink.defined()) return;
  Tensor host(p->sink.shape(), p->sink.dtype());
  dispatch_f32_f64(host.dtype(), "scalar gradient",
                   [&]<class T>() { host.as<T>()[0] = static_cast<T>(p->sink_scale * gradient); });
  Tensor term(host.shape(), host.dtype(), p->sink.device());
  copy(term, host);
  axpy(1, term, p->sink);
}

}  // namespace

// From the gradient of its unit vectors; `group_done` where nothing comes behind this chunk.
void TwoPass::backward(PlannedChunk& planned, const GroupDone& group_done) {
  ScratchScope scope(scratch_);
  const auto sequences = static_cast<int64_t>(planned.chunk.units.size());
  TensorView h = scope.tensor({sequences, model_.embedding_size()}, model_.parameters_dtype());
  if (!planned.keep) {
    planned.packed =
        std::make_unique<PackedChunk>(*batch_, planned.chunk, &*step_key_, model_.device());
    const ChunkView view = planned.packed->view();
    model_.tower(planned.tower).forward(context(view, true), h);
  }
  const ChunkView view = planned.packed->view();
  gather_rows(gradients_, planned.chunk.units, h);
  Context ctx = context(view, true);
  ctx.group_done = group_done;
  model_.tower(planned.tower).backward(ctx, h);
  planned.packed.reset();
}

void TwoPass::pass2(StepTimes& times, const GroupDone& group_done) {
  Stopwatch watch;
  const size_t count = chunks_.size();
  const size_t groups_before_queries =
      model_.separate_towers() ? model_.tower(1).backward_groups().size() : 0;
  for (size_t i = count; i-- > 0;) {
    PlannedChunk& planned = chunks_[i];
    const bool last_of_tower =
        std::none_of(chunks_.begin(), chunks_.begin() + static_cast<std::ptrdiff_t>(i),
                     [&](const PlannedChunk& c) {
                       return &model_.tower(c.tower) == &model_.tower(planned.tower);
                     });
    runtime_.set_phase(fmt::format("pass 2, chunk {}/{}", count - i, count));
    if (pass2_check_) pass2_check_();
    GroupDone done;
    if (group_done && last_of_tower) {
      const bool queries = &model_.tower(planned.tower) == &model_.tower(0);
      const size_t offset = queries ? groups_before_queries : 0;
      done = [&group_done, offset](size_t group) { group_done(offset + group); };
    }
    with_advice(planned, [&] { backward(planned, done); });
  }
  if (dp_.rank() == 0) {
    accumulate_scalar(&model_.log_scale(), scale_gradient_);
    accumulate_scalar(model_.loss_bias(), bias_gradient_);
  }
  chunks_.clear();
  times.pass2 += watch.lap();
}

}  // namespace amur
