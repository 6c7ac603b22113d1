// The gradient of one global batch in two passes (GradCache, arXiv 2101.06983): embeddings of all
// chunks, one loss stage, then each chunk backward from its cached gradient.
//
// Exact for any number of ranks and chunks: the loss sees the whole global batch, chunk gradients
// are summed, and dropout masks are the same in both passes. Chunks are visited in reverse order in
// pass 2 and the chunks that keep their activations are the last ones of pass 1, so the order of
// accumulation, and with it every bit of the result, does not depend on the activation budget.
//
// The ranks of a tp group are given the same batch. They do the loss stage redundantly, each with
// its own dp group: it is small beside the encoder, and nothing has to be sent.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "comm/communicator.h"
#include "src/core/device_backend.h"
#include "src/model/step_copies.h"
#include "src/train/budgets.h"
#include "src/train/data/batch.h"
#include "src/train/embedding_model.h"
#include "src/train/loss/contrastive_loss.h"

namespace amur {

class Runtime;

// Seconds of one step.
struct StepTimes {
  // `sync`: what the sum over ranks takes behind pass 2.
  double data = 0, pass1 = 0, loss = 0, pass2 = 0, sync = 0, update = 0;
};

struct BatchGradient {
  ContrastiveOutput loss;
  bool finite = true;        // false, on every rank: nothing was accumulated
  bool abandoned = false;    // a stop was asked for during pass 1, on some rank: nothing was done
  double gradient_norm = 0;  // global norm of dL/dh over all texts, before clipping
  double clip = 1;           // factor that was applied
  int64_t chunks = 0, recomputed = 0;  // of this rank
  int64_t tokens = 0, texts = 0;       // of this rank
  double forward_flops = 0;            // of one forward, this rank's share
};

// What to set where a GPU has not enough memory: a chunk of `tokens` takes `needed` bytes, and
// there are `room`.
std::string memory_advice(int64_t tokens, size_t needed, size_t room);
// The error of a chunk that was being computed, or for which room was to be made, with what would
// fit in its place; its stacks have `held` bytes that are not free.
[[noreturn]] void throw_with_advice(const MemoryError& error, const Encoder& tower, DType dtype,
                                    const Chunk& chunk, const SavedTensors& scratch, size_t held);

class TwoPass {
 public:
  // `stop_requested` is asked between chunks of pass 1; null: never.
  TwoPass(EmbeddingModel& model, const Config& config, Communicator& dp, Runtime& runtime,
          std::function<bool()> stop_requested = nullptr);

  // Instead of configured_budgets().
  void set_budgets(Budgets budgets) { budgets_ = budgets; }

  // Pass 1 and the loss stage. The batch must stay alive until `pass2`. Collective.
  BatchGradient pass1(const LocalBatch& batch, int64_t step, StepTimes& times);
  // Is told the index of each of EmbeddingModel::backward_groups() once this rank has added all to
  // its sinks.
  using GroupDone = std::function<void(size_t)>;

  // Pass 2: adds this rank's gradients to the sinks of the parameters; temperature and bias
  // (complete in the loss stage) on dp rank 0 only. Not collective. Must follow a finite pass 1.
  void pass2(StepTimes& times, const GroupDone& group_done = nullptr);

  // Replaces `contrastive_loss`: how `amur verify-grad --break` makes the mistakes that its
  // certificate must catch.
  using LossStage =
      std::function<ContrastiveOutput(const ContrastiveInput&, TensorView dq, TensorView dk)>;
  void set_loss_stage(LossStage stage) { loss_stage_ = std::move(stage); }

  // Asked between chunks of pass 2, where nothing can be abandoned: it may throw.
  void set_pass2_check(std::function<void()> check) { pass2_check_ = std::move(check); }

  size_t activation_peak_bytes() const { return saved_.peak_bytes(); }

 private:
  struct PlannedChunk {
    Chunk chunk;
    int tower = 0;
    bool keep = false;
    std::unique_ptr<PackedChunk> packed;  // of kept chunks, between the passes
  };
  void plan();
  void reserve(int64_t kept, std::span<const int64_t> bytes);
  void forward(PlannedChunk& planned, bool keep);
  void backward(PlannedChunk& planned, const GroupDone& group_done);
  template <class F>
  void with_advice(const PlannedChunk& planned, const F& compute);
  void run_loss_stage(BatchGradient& result);
  Context context(const ChunkView& view, bool keep);

  EmbeddingModel& model_;
  const Config& config_;
  Communicator& dp_;
  Runtime& runtime_;
  Budgets budgets_;
  std::function<bool()> stop_requested_;
  std::function<void()> pass2_check_;
  LossStage loss_stage_;

  const LocalBatch* batch_ = nullptr;
  std::optional<RandomKey> step_key_;
  std::vector<PlannedChunk> chunks_;
  SavedTensors saved_, scratch_;
  std::optional<StepCopies> copies_;  // on a GPU, where each small launch counts
  // Rows: this rank's queries, then its documents. Where the model is.
  Tensor embeddings_;  // [b_r + n_r, e] unit vectors
  Tensor norms_;       // [b_r + n_r]
  Tensor gradients_;   // [b_r + n_r, e] dL/dz, then dL/dh
  std::vector<uint64_t> query_ids_, document_ids_;
  double log_scale_ = 0, loss_bias_ = 0;  // of this step
  double scale_gradient_ = 0, bias_gradient_ = 0;
};

}  // namespace amur
