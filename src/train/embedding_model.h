// The model that is trained: one or two encoder towers, and the temperature and bias of the loss.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "src/model/encoder.h"
#include "src/train/config/config.h"

namespace amur {

constexpr DType activation_dtype(Precision precision) {
  switch (precision) {
    case Precision::fp32:
      return DType::f32;
    case Precision::bf16:
      return DType::bf16;
    case Precision::fp64:
      return DType::f64;
  }
  return DType::f32;
}

// Of weights and embeddings; the other parameters are parameter_dtype(activation_dtype(precision)).
constexpr DType matrix_dtype(StatePrecision state, Precision precision) {
  if (precision == Precision::fp64) return DType::f64;
  return state == StatePrecision::fp32 ? DType::f32 : DType::bf16;
}

class EmbeddingModel {
 public:
  // Allocates this rank's share of the parameters, not initialised. `tp` are the ranks that share
  // every layer, and must outlive the model; null: this one alone. The parameters lie on `device`,
  // which is where passes through the model compute. `config.model.vocab` must be set.
  EmbeddingModel(const Config& config, Precision precision, Communicator* tp = nullptr,
                 Device device = Device::cpu())
      : EmbeddingModel(config, precision, tp, device, true) {}
  // Parameters without values, constants, sizes: what there is to say about a model without the
  // memory that it takes.
  static std::unique_ptr<EmbeddingModel> outline(const Config& config, Precision precision);

  // For the `Context` of a pass; null where the group has one rank.
  Communicator* tp() const { return tp_; }
  int tp_rank() const { return tp_ ? tp_->rank() : 0; }
  int tp_size() const { return tp_ ? tp_->size() : 1; }

  // Fills the parameters from the seed; temperature and bias from `loss.*`.
  void initialise(uint64_t seed);

  ParameterSet& parameters() { return parameters_; }
  // Towers: 0 for queries, 1 for documents; the same encoder where they are shared.
  Encoder& tower(int which) { return which == 1 && document_ ? *document_ : *query_; }
  // Parameters in the order in which pass 2 finishes them: the groups of the document tower, where
  // it is another one, then those of the query tower. Without temperature and bias.
  std::vector<std::vector<Parameter*>> backward_groups();
  bool separate_towers() const { return document_ != nullptr; }
  Device device() const { return device_; }
  int64_t embedding_size() const { return query_->embedding_size(); }
  DType dtype() const { return dtype_; }  // of activations
  // Of what the model puts out, and of all parameters but, under optimizer.state, matrices.
  DType parameters_dtype() const { return parameter_dtype(dtype_); }

  // t = log of the scale, and the bias of SigLIP: parameters of kind scalar.
  Parameter& log_scale() { return *log_scale_; }
  Parameter* loss_bias() { return loss_bias_; }  // null for InfoNCE
  double log_scale_value() const;
  double loss_bias_value() const;
  // Keeps t in [0, log(scale_max)], and says what it is.
  double clamp_scale(double scale_max);

  // Numbers that are no parameters but belong to the function (see ModelConstant), by name: stored
  // with a checkpoint, because growth may change them.
  std::map<std::string, double> constants();
  // Sets those given, keeps the others; UsageError for a name that this model does not have.
  void set_constants(const std::map<std::string, double>& values);

  // Copies all parameters from a model of the same configuration and another precision.
  void assign_from(EmbeddingModel& other);

 private:
  EmbeddingModel(const Config& config, Precision precision, Communicator* tp, Device device,
                 bool allocate);

  DType dtype_;
  Communicator* tp_;
  Device device_;
  double initial_log_scale_, initial_bias_;
  ParameterSet parameters_;
  std::unique_ptr<Encoder> query_, document_;
  Parameter* log_scale_ = nullptr;
  Parameter* loss_bias_ = nullptr;
};

}  // namespace amur
