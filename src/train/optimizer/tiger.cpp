#include "src/train/optimizer/tiger.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "kernels/elementwise.h"
#include "kernels/optimizer_update.h"
#include "kernels/rows.h"
#include "src/train/optimizer/rates.h"

namespace amur {
Tiger::Tiger(const OptimizerConfig& config, ParameterSet& parameters, double scalar_learning_rate,
             Communicator* tp, uint64_t seed)
    : Optimizer(parameters, tp, seed),
      config_(config),
      parameters_(parameters),
      scalar_learning_rate_(scalar_learning_rate),
      tail_(config.embedding_tail > 0 ? config.embedding_tail : 1 / (1 - config.beta)),
      states_(parameters.size()) {
  for (size_t i = 0; i < parameters.size(); ++i) {
    const Parameter& p = parameters[i];
    if (p.frozen) continue;
    State& state = states_[i];
    const bool rounded = config.state == StatePrecision::bf16 && p.is_matrix();
    state.momentum =
        Tensor::zeros(p.value.shape(), rounded ? DType::bf16 : parameter_dtype(p.value.dtype()),
                      p.value.device());
    if (p.kind == ParamKind::embedding && config.embedding_rows == EmbeddingRows::lazy) {
      state.last_step = Tensor({p.value.view().rows()}, DType::i64);
      std::fill_n(state.last_step.as<int64_t>(), state.last_step.elements(), -1);
    }
  }
}

void Tiger::begin_step(int64_t step, double weight, std::span<TensorView> touched,
                       Communicator& dp) {
  const bool owner = dp.rank() == 0;
  std::vector<TensorView> bitmaps;  // of the lazy tables
  size_t table = 0;
  for (size_t i = 0; i < parameters_.size(); ++i) {
    const Parameter& p = parameters_[i];
    if (p.kind != ParamKind::embedding) continue;
    if (states_[i].lazy()) {
      AMUR_CHECK(table < touched.size(), "no bitmap of touched rows for {}", p.name);
      AMUR_CHECK(touched[table].elements() == states_[i].last_step.elements(),
                 "{} has {} rows, its bitmap {}", p.name, states_[i].last_step.elements(),
                 touched[table].elements());
      bitmaps.push_back(touched[table]);
    }
    ++table;
  }
  if (!bitmaps.empty()) dp.all_reduce(bitmaps, ReduceOp::max);
  dp.synchronize();

  // What a rank's sink starts from: beta m on the owner, 0 elsewhere, and beta times the residual.
  auto bitmap = bitmaps.begin();
  std::vector<TensorView> whole;
  for (size_t i = 0; i < parameters_.size(); ++i) {
    Parameter& p = parameters_[i];
    State& state = states_[i];
    p.sink = state.momentum;
    p.sink_scale = (1 - config_.beta) * weight;
    if (!state.momentum.defined()) continue;
    if (state.lazy())
      open_rows(state, *bitmap++, step, owner);
    else
      whole.push_back(state.momentum);
  }
  scale(owner ? config_.beta : 0, whole);
  for (State& state : states_)
    if (state.residual.defined() && !state.lazy())
      axpy(config_.beta, state.residual, state.momentum);
  sync().begin([this](size_t i) {
    State& state = states_[i];
    GradientSync::Part part;
    if (state.lazy()) part.rows = state.rows;
    part.residual = state.residual;
    return part;
  });
}

// Rows that nobody touches keep their momentum, the same on every rank.
void Tiger::open_rows(State& state, TensorView touched, int64_t step, bool owner) const {
  const uint8_t* bits = touched.as<uint8_t>();
  state.rows.clear();
  std::vector<double> decays;
  for (int64_t r = 0; r < touched.elements(); ++r) {
    if (bits[r] == 0) continue;
    state.rows.push_back(r);
    const int64_t gap = step - state.last_step.as<int64_t>()[r];
    AMUR_CHECK(gap >= 1, "step {} after step {}", step, state.last_step.as<int64_t>()[r]);
    decays.push_back(gap == 1 ? config_.beta : std::pow(config_.beta, static_cast<double>(gap)));
  }
  scale_rows(state.momentum, state.rows, owner ? decays : std::vector<double>(decays.size(), 0));
  if (!state.residual.defined()) return;
  for (size_t k = 0; k < decays.size(); ++k)
    axpy(decays[k], state.residual.view().slice(state.rows[k], 1),
         state.momentum.view().slice(state.rows[k], 1));
}

void Tiger::set_sync(SyncOptions options) {
  const bool rounded = options.rounded;
  sync().set_options(std::move(options));
  for (State& state : states_) {
    if (!rounded || !state.momentum.defined()) continue;
    AMUR_CHECK(state.momentum.dtype() == DType::f32, "rounded sums need f32 momenta");
    state.residual = Tensor::zeros(state.momentum.shape(), DType::f32, state.momentum.device());
  }
}

// Per-row sinks of lazy tables hold rows that this step did not touch, whose residual stays.
void Tiger::settle(Communicator& dp) {
  std::vector<TensorView> residuals;
  for (State& state : states_)
    if (state.residual.defined()) residuals.push_back(state.residual);
  if (residuals.empty()) return;
  dp.all_reduce(residuals, ReduceOp::sum, sync().options().stream);
  dp.synchronize(sync().options().stream);
  for (State& state : states_) {
    if (!state.residual.defined()) continue;
    axpy(1, state.residual, state.momentum);
    fill_zero(state.residual);
  }
}

void Tiger::update_parameter(Parameter& p, State& state, double squares, int64_t step, double alpha,
                             std::vector<ParameterUpdate>& fused) const {
  const double rate = alpha * p.learning_rate_multiplier;
  const double decay = config_.weight_decay * p.decay_multiplier;
  const StochasticRounding rounding = rounding_of(p, step);
  switch (p.kind) {
    case ParamKind::weight: {
      const double rms = std::sqrt(squares / static_cast<double>(p.global_elements()));
      fused.push_back({.step = SignStep{rate * std::max(rms, p.rms_floor), decay},
                       .theta = p.value,
                       .momentum = state.momentum,
                       .rounding = rounding});
      break;
    }
    case ParamKind::bias:
    case ParamKind::gain:
      fused.push_back({SignStep{0.5 * rate, 0}, p.value, state.momentum});
      break;
    case ParamKind::scalar:
      fused.push_back({BoundedStep{scheduled(config_, scalar_learning_rate_, alpha) *
                                       p.learning_rate_multiplier,
                                   kScalarThreshold},
                       p.value, state.momentum});
      break;
    case ParamKind::embedding:
      if (!state.lazy()) {
        sign_update_by_row(state.momentum, rate, p.rms_floor, decay, p.value, rounding);
        break;
      }
      const bool positions = p.axes[0].role == AxisRole::position;
      std::vector<double> rates;
      rates.reserve(state.rows.size());
      for (int64_t r : state.rows) {
        int64_t& last = state.last_step.as<int64_t>()[r];
        const double pushes = std::min(static_cast<double>(step - last), tail_);
        rates.push_back(rate * (positions ? 1 : config_.embedding_rate) * pushes);
        last = step;
      }
      sign_update_of_rows(state.momentum, state.rows, rates, p.rms_floor, decay, p.value, rounding);
      break;
  }
}

void Tiger::update(int64_t step, double alpha) {
  const size_t n = parameters_.size();
  std::vector<ConstTensorView> whole(2 * n);  // momenta, then weights
  for (size_t i = 0; i < n; ++i) {
    const State& state = states_[i];
    if (!state.momentum.defined()) continue;
    if (!state.lazy()) whole[i] = state.momentum;
    if (parameters_[i].kind == ParamKind::weight) whole[n + i] = parameters_[i].value;
  }
  std::vector<double> squares = sums_of_squares(whole);
  for (size_t i = 0; i < n; ++i)
    if (states_[i].lazy())
      squares[i] = sum_of_squares_of_rows(states_[i].momentum, states_[i].rows);
  sync().complete_sums(squares);
  std::vector<ParameterUpdate> fused;
  for (size_t i = 0; i < n; ++i)
    if (states_[i].momentum.defined())
      update_parameter(parameters_[i], states_[i], squares[n + i], step, alpha, fused);
  update_parameters(fused);
  norm_ = std::sqrt(
      std::accumulate(squares.begin(), squares.begin() + static_cast<std::ptrdiff_t>(n), 0.0));
}

std::vector<OptimizerSlot> Tiger::slots() {
  std::vector<OptimizerSlot> slots;
  for (size_t i = 0; i < parameters_.size(); ++i) {
    State& state = states_[i];
    if (state.momentum.defined()) slots.push_back({"momentum", &parameters_[i], state.momentum});
    if (state.lazy()) slots.push_back({"last_step", &parameters_[i], state.last_step, true});
  }
  return slots;
}

size_t Tiger::state_bytes() const {
  size_t bytes = 0;
  for (const State& state : states_) {
    if (state.momentum.defined()) bytes += state.momentum.bytes();
    if (state.residual.defined()) bytes += state.residual.bytes();
    if (state.lazy()) bytes += state.last_step.bytes();
  }
  return bytes;
}

}  // namespace amur
