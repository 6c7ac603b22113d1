// Token, position and token type embeddings, with the norm and dropout behind them.
#pragma once

#include <optional>

#include "src/model/norm.h"

namespace amur {

// Keeps nothing: the forward is a lookup, repeated where its output is needed again.
//
// The rows of the token table may be spread over a tensor-parallel group: each rank looks its own
// rows up, one sum puts the lookup together, and each adds to the gradient of its own rows.
class Embedding {
 public:
  // `<name>.tokens`, `<name>.positions` (learned), `<name>.token_type`, `<name>.norm.*`; with 0
  // layers only the first.
  Embedding(const ModelConfig& config, const std::string& name, ParameterSet& parameters);

  // x [T, d] activations. `before` [T, d] of their dtype and `statistics`, where there is a norm:
  // its input, which may be x unless a backward follows, and what it found.
  void forward(const Context& context, TensorView x, TensorView before,
               const NormStatistics& statistics) const;
  // dx is overwritten; the others as the forward has left them.
  void backward(const Context& context, TensorView dx, ConstTensorView before,
                const NormStatistics& statistics) const;
  NormStatistics statistics(ScratchScope& scratch, ConstTensorView x) const {
    return norm_ ? norm_->statistics(scratch, x) : NormStatistics();
  }

  Parameter& tokens() { return *tokens_; }
  Parameter* positions() { return positions_; }
  std::optional<Norm>& norm() { return norm_; }

 private:
  TableRows token_rows(const Context& context) const;  // held by this rank
  void lookup(const Context& context, TensorView x) const;
  DropoutSite dropout(const Context& context) const {
    return context.dropout(dropout_, 0, DropoutPlace::embeddings);
  }

  Parameter* tokens_;
  Parameter* positions_ = nullptr;
  Parameter* token_type_ = nullptr;  // [hidden]: texts are of one type, 0
  std::optional<Norm> norm_;
  bool sinusoidal_;
  double dropout_;
};

}  // namespace amur
