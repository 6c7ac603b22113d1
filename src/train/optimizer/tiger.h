// Tiger (Su Jianlin, kexue.fm/archives/9512): weights and one momentum, nothing else.
//
//   m_t = beta m_{t-1} + (1 - beta) g        theta_t = theta_{t-1} - eta (sign(m_t) + lambda
//   theta_{t-1})
//
// The gradient is accumulated straight into m (kexue.fm/archives/8634): rank 0 of dp opens the step
// with beta m, the others with 0, every backward adds (1 - beta) weight g, and one sum over the
// ranks gives m_t. With the learning rate alpha:
//
//   kind        eta                                           lambda
//   weight      alpha max(RMS(theta), rms_floor)              weight_decay
//   embedding   per row: alpha max(RMS(row), rms_floor)       weight_decay
//   bias, gain  0.5 alpha                                     0
//   scalar      see Optimizer::make                           0
//
// times the parameter's learning-rate and decay multipliers. Lazy embedding rows: a row moves only
// in the steps that touch it on any rank. For one touched at step t with gap n = t - (step of the
// touch before; -1 at first):
//
//   m <- beta^n m + (1 - beta) g
//   theta <- theta - alpha K min(n, T) max(RMS(row), rms_floor) (sign(m) + lambda theta)
//
// K = embedding_rate, but 1 for position tables, which every text touches; T = embedding_tail (0:
// 1/(1 - beta), the pushes that the momentum would still have given). Dense rows are the published
// rule: every row at every step, K = T = 1.
//
// Weights and embeddings kept in bf16 are rounded stochastically (kernels/optimizer_rules.h); their
// momenta are f32, or bf16 too (OptimizerConfig::state), and then rounded to nearest wherever they
// are written: at the opening of a step, by each chunk and by the sum over ranks.
//
// Sums may be rounded to bf16 where they travel between machines (inexact). What is rounded away on
// a rank, e, belongs to the momentum: m plus the e of all ranks is the exact one. A step opens from
// beta (m + e) on the owner and from beta e elsewhere, and `settle` adds all e to m in fp32.
#pragma once

#include <vector>

#include "kernels/optimizer_update.h"
#include "src/train/optimizer/optimizer.h"

namespace amur {

class Tiger : public Optimizer {
 public:
  // RMS(theta) of a weight that is spread over `tp` is that of the whole; rows of embeddings are
  // never cut.
  Tiger(const OptimizerConfig& config, ParameterSet& parameters, double scalar_learning_rate,
        Communicator* tp, uint64_t seed);

  const char* name() const override { return "tiger"; }
  void set_sync(SyncOptions options) override;
  void begin_step(int64_t step, double weight, std::span<TensorView> touched,
                  Communicator& dp) override;
  void update(int64_t step, double alpha) override;
  void settle(Communicator& dp) override;
  std::vector<OptimizerSlot> slots() override;
  double last_gradient_norm() const override { return norm_; }
  size_t state_bytes() const override;

 private:
  struct State {
    Tensor momentum;            // shaped as the parameter; undefined while frozen
    Tensor last_step;           // [rows] i64, lazy tables only: step that last touched the row
    std::vector<int64_t> rows;  // touched in this step, ascending
    Tensor residual;            // as momentum, where sums are rounded: see below
    bool lazy() const { return last_step.defined(); }
  };

  void open_rows(State& state, TensorView touched, int64_t step, bool owner) const;
  // `squares` is the sum over all elements of a weight. Tables are updated at once, the others
  // added to `fused`.
  void update_parameter(Parameter& parameter, State& state, double squares, int64_t step,
                        double alpha, std::vector<ParameterUpdate>& fused) const;

  OptimizerConfig config_;
  ParameterSet& parameters_;
  double scalar_learning_rate_;
  double tail_;
  std::vector<State> states_;  // one a parameter
  double norm_ = 0;
};

}  // namespace amur
