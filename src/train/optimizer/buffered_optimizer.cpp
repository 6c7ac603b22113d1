#include "src/train/optimizer/buffered_optimizer.h"

#include <cmath>
#include <numeric>

#include "kernels/elementwise.h"
#include "src/train/optimizer/rates.h"

namespace amur {

BufferedOptimizer::BufferedOptimizer(const OptimizerConfig& config, ParameterSet& parameters,
                                     double scalar_learning_rate, Communicator* tp, uint64_t seed)
    : Optimizer(parameters, tp, seed),
      config_(config),
      parameters_(parameters),
      scalar_learning_rate_(scalar_learning_rate),
      gradients_(zeros_like_parameters()) {}

std::vector<Tensor> BufferedOptimizer::zeros_like_parameters() const {
  std::vector<Tensor> tensors;
  for (const Parameter& p : parameters_)
    tensors.push_back(p.frozen ? Tensor()
                               : Tensor::zeros(p.value.shape(), parameter_dtype(p.value.dtype()),
                                               p.value.device()));
  return tensors;
}

void BufferedOptimizer::begin_step(int64_t, double weight, std::span<TensorView>, Communicator&) {
  for (size_t i = 0; i < parameters_.size(); ++i) {
    Parameter& p = parameters_[i];
    p.sink = gradients_[i];
    p.sink_scale = weight;
  }
  scale(0, std::vector<TensorView>(gradients_.begin(), gradients_.end()));
  sync().begin([](size_t) { return GradientSync::Part(); });
}

void BufferedOptimizer::set_sync(SyncOptions options) {
  AMUR_CHECK(!options.rounded, "{} has no place for what rounding takes away", name());
  Optimizer::set_sync(std::move(options));
}

void BufferedOptimizer::update(int64_t step, double alpha) {
  std::vector<ConstTensorView> defined(parameters_.size());
  for (size_t i = 0; i < parameters_.size(); ++i)
    if (gradients_[i].defined()) defined[i] = gradients_[i];
  std::vector<double> squares = sums_of_squares(defined);
  update_from(gradients_, step, alpha);
  sync().complete_sums(squares);
  norm_ = std::sqrt(std::accumulate(squares.begin(), squares.end(), 0.0));
}

size_t BufferedOptimizer::gradient_bytes() const {
  size_t bytes = 0;
  for (const Tensor& g : gradients_)
    if (g.defined()) bytes += g.bytes();
  return bytes;
}

double BufferedOptimizer::rate_of(const Parameter& p, double alpha) const {
  double rate = alpha;
  if (p.kind == ParamKind::scalar)
    rate = scheduled(config_, scalar_learning_rate_, alpha);
  else if (p.kind == ParamKind::embedding && config_.embedding_learning_rate > 0)
    rate = scheduled(config_, config_.embedding_learning_rate, alpha);
  return rate * p.learning_rate_multiplier;
}

double BufferedOptimizer::decay_of(const Parameter& p) const {
  const bool decays = p.kind == ParamKind::weight || p.kind == ParamKind::embedding;
  return decays ? config_.weight_decay * p.decay_multiplier : 0;
}

}  // namespace amur
