#include "src/train/embedding_model.h"

#include <algorithm>
#include <cmath>

#include "kernels/elementwise.h"

namespace amur {
namespace {

Parameter scalar_parameter(const std::string& name, bool learn) {
  Parameter p;
  p.name = name;
  p.kind = ParamKind::scalar;
  p.axes = {{1, AxisRole::fixed}};
  p.decay_multiplier = 0;
  p.frozen = !learn;
  return p;
}

double scalar_value(const Parameter& p) {
  Tensor staging;
  const ConstTensorView value = on_host(p.value, staging);
  return dispatch_f32_f64(value.dtype(), "scalar",
                          [&]<class T>() { return static_cast<double>(value.as<T>()[0]); });
}

void set_scalar(Parameter& p, double value) {
  Tensor host(p.value.shape(), p.value.dtype());
  dispatch_f32_f64(host.dtype(), "scalar",
                   [&]<class T>() { host.as<T>()[0] = static_cast<T>(value); });
  copy(p.value, host);
}

}  // namespace

std::unique_ptr<EmbeddingModel> EmbeddingModel::outline(const Config& config, Precision precision) {
  return std::unique_ptr<EmbeddingModel>(
      new EmbeddingModel(config, precision, nullptr, Device::cpu(), false));
}

EmbeddingModel::EmbeddingModel(const Config& config, Precision precision, Communicator* tp,
                               Device device, bool allocate)
    : dtype_(activation_dtype(precision)),
      tp_(tp && tp->size() > 1 ? tp : nullptr),
      device_(device),
      initial_log_scale_(std::log(config.loss.scale)),
      initial_bias_(config.loss.bias) {
  AMUR_CHECK(config.model.vocab > 0, "the vocabulary's size is not set");
  config.model.require_shares(tp_size());
  if (config.model.towers == TowerKind::shared) {
    query_ = std::make_unique<Encoder>(config.model, "encoder", parameters_);
  } else {
    query_ = std::make_unique<Encoder>(config.model, "query_encoder", parameters_);
    document_ = std::make_unique<Encoder>(config.model, "document_encoder", parameters_);
  }
  log_scale_ = &parameters_.add(scalar_parameter("loss.log_scale", config.loss.learn_scale));
  if (config.loss.kind == LossKind::siglip)
    loss_bias_ = &parameters_.add(scalar_parameter("loss.bias", config.loss.learn_bias));
  if (allocate)
    parameters_.allocate(parameters_dtype(), matrix_dtype(config.optimizer.state, precision),
                         device_, tp_rank(), tp_size());
}

void EmbeddingModel::initialise(uint64_t seed) {
  parameters_.initialise(seed, tp_rank(), tp_size());
  set_scalar(*log_scale_, initial_log_scale_);
  if (loss_bias_) set_scalar(*loss_bias_, initial_bias_);
}

double EmbeddingModel::log_scale_value() const {
  return scalar_value(*log_scale_);
}

double EmbeddingModel::loss_bias_value() const {
  return loss_bias_ ? scalar_value(*loss_bias_) : 0.0;
}

double EmbeddingModel::clamp_scale(double scale_max) {
  const double value = log_scale_value(), clamped = std::clamp(value, 0.0, std::log(scale_max));
  if (clamped != value) set_scalar(*log_scale_, clamped);
  return clamped;
}

std::vector<std::vector<Parameter*>> EmbeddingModel::backward_groups() {
  std::vector<std::vector<Parameter*>> groups;
  if (document_) groups = document_->backward_groups();
  for (auto& group : query_->backward_groups()) groups.push_back(std::move(group));
  return groups;
}

std::map<std::string, double> EmbeddingModel::constants() {
  std::map<std::string, double> values;
  for (int which = 0; which < (separate_towers() ? 2 : 1); ++which)
    for (const ModelConstant& c : tower(which).constants()) values[c.name] = *c.value;
  return values;
}

void EmbeddingModel::set_constants(const std::map<std::string, double>& values) {
  std::map<std::string, double*> own;
  for (int which = 0; which < (separate_towers() ? 2 : 1); ++which)
    for (const ModelConstant& c : tower(which).constants()) own[c.name] = c.value;
  for (const auto& [name, value] : values) {
    const auto it = own.find(name);
    if (it == own.end()) throw UsageError("the model has no constant '{}'", name);
    *it->second = value;
  }
}

void EmbeddingModel::assign_from(EmbeddingModel& other) {
  AMUR_CHECK(parameters_.size() == other.parameters_.size(), "{} and {} parameters",
             parameters_.size(), other.parameters_.size());
  for (size_t i = 0; i < parameters_.size(); ++i)
    cast(other.parameters_[i].value, parameters_[i].value);
}

}  // namespace amur
