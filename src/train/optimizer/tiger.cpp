#include "src/train/optimizer/tiger.h"

#include <algorithm>
#include <cmath>

#include "kernels/elementwise.h"
#include "kernels/optimizer_update.h"
#include "src/train/optimizer/gradient_sync.h"
#include "src/train/optimizer/rates.h"

namespace amur {
namespace {

constexpr size_t kBucketBytes = size_t{4} << 20;

}  // namespace

Tiger::Tiger(const OptimizerConfig& config, ParameterSet& parameters, double scalar_learning_rate)
    : config_(config),
      parameters_(parameters),
      scalar_learning_rate_(scalar_learning_rate),
      tail_(config.embedding_tail > 0 ? config.embedding_tail : 1 / (1 - config.beta)),
      states_(parameters.size()) {
  for (size_t i = 0; i < parameters.size(); ++i) {
    const Parameter& p = parameters[i];
    if (p.frozen) continue;
    State& state = states_[i];
    state.momentum = Tensor::zeros(p.value.shape(), p.value.dtype(), p.value.device());
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

  auto bitmap = bitmaps.begin();
  for (size_t i = 0; i < parameters_.size(); ++i) {
    Parameter& p = parameters_[i];
    State& state = states_[i];
    p.sink = state.momentum;
    p.sink_scale = (1 - config_.beta) * weight;
    if (!state.momentum.defined()) continue;
    if (state.lazy())
      open_rows(state, *bitmap++, step, owner);
    else if (owner)
      scale(config_.beta, state.momentum);
    else
      fill_zero(state.momentum);
  }
}

// Rows that nobody touches keep their momentum, the same on every rank.
void Tiger::open_rows(State& state, TensorView touched, int64_t step, bool owner) const {
  const uint8_t* bits = touched.as<uint8_t>();
  state.rows.clear();
  for (int64_t r = 0; r < touched.elements(); ++r) {
    if (bits[r] == 0) continue;
    state.rows.push_back(r);
    const TensorView row = state.momentum.view().slice(r, 1);
    const int64_t gap = step - state.last_step.as<int64_t>()[r];
    AMUR_CHECK(gap >= 1, "step {} after step {}", step, state.last_step.as<int64_t>()[r]);
    if (owner)
      scale(std::pow(config_.beta, static_cast<double>(gap)), row);
    else
      fill_zero(row);
  }
}

bool Tiger::finite(const State& state) const {
  if (!state.momentum.defined()) return true;
  if (!state.lazy()) return all_finite(state.momentum);
  return std::all_of(state.rows.begin(), state.rows.end(),
                     [&](int64_t r) { return all_finite(state.momentum.view().slice(r, 1)); });
}

void Tiger::sum_over_ranks(int64_t step, Communicator& dp) {
  require_finite_gradients(
      parameters_, step, [&](size_t i) { return finite(states_[i]); }, dp);
  if (dp.size() == 1) return;
  std::vector<TensorView> whole;
  for (State& state : states_)
    if (state.momentum.defined() && !state.lazy()) whole.push_back(state.momentum);
  if (!whole.empty()) dp.all_reduce(whole, ReduceOp::sum);

  // Touched rows travel packed, a bucket at a time.
  for (State& state : states_) {
    if (!state.lazy() || state.rows.empty()) continue;
    const TensorView momentum = state.momentum;
    const auto rows = std::ssize(state.rows);
    const size_t row_bytes = momentum.slice(0, 1).bytes();
    const int64_t at_once =
        std::clamp<int64_t>(static_cast<int64_t>(kBucketBytes / row_bytes), 1, rows);
    Tensor bucket({at_once, momentum.columns()}, momentum.dtype(), momentum.device());
    for (int64_t first = 0; first < rows; first += at_once) {
      const int64_t count = std::min(at_once, rows - first);
      const auto each_row = [&](auto&& f) {
        for (int64_t k = 0; k < count; ++k) {
          const TensorView row = momentum.slice(state.rows[static_cast<size_t>(first + k)], 1);
          f(row.reshape({1, momentum.columns()}), bucket.view().slice(k, 1));
        }
      };
      each_row([](TensorView row, TensorView packed) { copy(packed, row); });
      dp.all_reduce(bucket.view().slice(0, count), ReduceOp::sum);
      dp.synchronize();
      each_row([](TensorView row, TensorView packed) { copy(row, packed); });
    }
  }
  dp.synchronize();
}

void Tiger::update_parameter(Parameter& p, State& state, int64_t step, double alpha) const {
  const double rate = alpha * p.learning_rate_multiplier;
  const double decay = config_.weight_decay * p.decay_multiplier;
  switch (p.kind) {
    case ParamKind::weight:
      sign_update(state.momentum, rate * std::max(root_mean_square(p.value), p.rms_floor), decay,
                  p.value);
      break;
    case ParamKind::bias:
    case ParamKind::gain:
      sign_update(state.momentum, 0.5 * rate, 0, p.value);
      break;
    case ParamKind::scalar:
      bounded_update(state.momentum,
                     scheduled(config_, scalar_learning_rate_, alpha) * p.learning_rate_multiplier,
                     kScalarThreshold, p.value);
      break;
    case ParamKind::embedding:
      if (!state.lazy()) {
        sign_update_by_row(state.momentum, rate, p.rms_floor, decay, p.value);
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
      sign_update_of_rows(state.momentum, state.rows, rates, p.rms_floor, decay, p.value);
      break;
  }
}

double Tiger::sum_of_squares_of(const State& state) const {
  if (!state.momentum.defined()) return 0;
  if (!state.lazy()) return sum_of_squares(state.momentum);
  double sum = 0;
  for (int64_t r : state.rows) sum += sum_of_squares(state.momentum.view().slice(r, 1));
  return sum;
}

void Tiger::update(int64_t step, double alpha) {
  double squares = 0;
  for (size_t i = 0; i < parameters_.size(); ++i) {
    if (!states_[i].momentum.defined()) continue;
    squares += sum_of_squares_of(states_[i]);
    update_parameter(parameters_[i], states_[i], step, alpha);
  }
  norm_ = std::sqrt(squares);
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
    if (state.lazy()) bytes += state.last_step.bytes();
  }
  return bytes;
}

}  // namespace amur
