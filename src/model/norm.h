// LayerNorm or RMSNorm with its parameters.
#pragma once

#include "src/model/model_config.h"
#include "src/model/module.h"
#include "src/model/parameter.h"

namespace amur {

// Mean (undefined for RMSNorm) and reciprocal deviation of each row.
struct NormStatistics {
  TensorView mean, rstd;  // [T] parameter dtype
};

// Keeps nothing: the backward's caller repeats the forward, which costs one pass over x, where
// keeping the output would cost as much memory as x.
class Norm {
 public:
  // `<name>.gain`, `.bias` (LayerNorm); gated: `.gate` [1] too, the g of g norm(x) + (1 - g) x, 1
  // at first.
  Norm(const ModelConfig& config, const std::string& name, ParameterSet& parameters,
       bool gated = false);

  NormStatistics statistics(ScratchScope& scratch, ConstTensorView x) const;
  // y may be x; fills the statistics.
  void forward(const Context& context, ConstTensorView x, TensorView y,
               const NormStatistics& statistics) const;
  // y = residual + dropout(x), then n = norm(y), in one pass where that can be; y may be x, n may
  // be residual.
  void add_forward(const Context& context, const DropoutSite& site, ConstTensorView x,
                   ConstTensorView residual, TensorView y, TensorView n) const;
  // dx = gradient of x (+ residual, where defined); dx may be dy or residual.
  void backward(const Context& context, ConstTensorView dy, ConstTensorView x,
                const NormStatistics& statistics, ConstTensorView residual, TensorView dx) const;

  const std::string& name() const { return name_; }
  NormKind kind() const { return kind_; }
  double& eps() { return eps_; }
  // LayerNorm: mean and variance are those of so many first coordinates; all, unless growth has
  // added others (a whole number).
  double& statistics_width() { return statistics_width_; }

 private:
  void ungated(const Context& context, ConstTensorView x, TensorView y,
               const NormStatistics& statistics) const;

  std::string name_;
  NormKind kind_;
  double eps_;
  double statistics_width_;
  Parameter* gain_;
  Parameter* bias_ = nullptr;
  Parameter* gate_ = nullptr;
};

}  // namespace amur
