#include "src/model/norm.h"

#include "kernels/elementwise.h"
#include "src/model/linear.h"

namespace amur {

Norm::Norm(const ModelConfig& config, const std::string& name, ParameterSet& parameters, bool gated)
    : name_(name),
      kind_(config.norm),
      eps_(config.norm_eps),
      statistics_width_(static_cast<double>(config.hidden)) {
  Parameter gain;
  gain.name = name + ".gain";
  gain.kind = ParamKind::gain;
  gain.axes = {{config.hidden, AxisRole::model}};
  gain.init = {Initializer::Kind::constant, 1};
  gain_ = &parameters.add(std::move(gain));
  if (config.bias && kind_ == NormKind::layer) {
    Parameter bias;
    bias.name = name + ".bias";
    bias.kind = ParamKind::bias;
    bias.axes = {{config.hidden, AxisRole::model}};
    bias_ = &parameters.add(std::move(bias));
  }
  if (gated) {
    Parameter gate;
    gate.name = name + ".gate";
    gate.kind = ParamKind::gain;
    gate.axes = {{1, AxisRole::fixed}};
    gate.init = {Initializer::Kind::constant, 1};
    gate_ = &parameters.add(std::move(gate));
  }
}

NormStatistics Norm::statistics(ScratchScope& scratch, ConstTensorView x) const {
  const DType dtype = parameter_dtype(x.dtype());
  NormStatistics statistics;
  if (kind_ == NormKind::layer) statistics.mean = scratch.tensor({x.rows()}, dtype);
  statistics.rstd = scratch.tensor({x.rows()}, dtype);
  return statistics;
}

void Norm::forward(const Context& context, ConstTensorView x, TensorView y,
                   const NormStatistics& statistics) const {
  if (gate_ == nullptr) return ungated(context, x, y, statistics);
  ScratchScope scratch(*context.scratch);
  if (x.raw() == y.raw()) {
    const TensorView kept = scratch.tensor(x.shape(), x.dtype());
    copy(kept, x, context.stream);
    x = kept;
  }
  ungated(context, x, y, statistics);
  gate_forward(gate_->value, x, y, context.stream);
}

void Norm::add_forward(const Context& context, const DropoutSite& site, ConstTensorView x,
                       ConstTensorView residual, TensorView y, TensorView n) const {
  ScratchScope scratch(*context.scratch);
  const NormStatistics statistics = this->statistics(scratch, y);
  const PackedSequences& packed = context.chunk->packed;
  if (gate_ != nullptr) {
    dropout_add_forward(packed, site, x, residual, y, context.stream);
    return forward(context, y, n, statistics);
  }
  add_norm_forward(packed, site, x, residual, y, kind_, gain_->value,
                   bias_ ? bias_->value.view() : TensorView(), eps_, n, statistics.mean,
                   statistics.rstd, static_cast<int64_t>(statistics_width_), context.stream);
}

void Norm::ungated(const Context& context, ConstTensorView x, TensorView y,
                   const NormStatistics& statistics) const {
  norm_forward(kind_, x, gain_->value, bias_ ? bias_->value.view() : TensorView(), eps_, y,
               statistics.mean, statistics.rstd, static_cast<int64_t>(statistics_width_),
               context.stream);
}

void Norm::backward(const Context& context, ConstTensorView dy, ConstTensorView x,
                    const NormStatistics& statistics, ConstTensorView residual,
                    TensorView dx) const {
  // One scale for both: without a bias (or with a frozen one) it is the gain's, and the other way.
  const TensorView gain_sink = flat_sink(*gain_);
  const TensorView bias_sink = bias_ ? flat_sink(*bias_) : TensorView();
  AMUR_CHECK(!gain_sink.defined() || !bias_sink.defined() || gain_->sink_scale == bias_->sink_scale,
             "{}: scales {} and {}", name_, gain_->sink_scale, bias_->sink_scale);
  ScratchScope scratch(*context.scratch);
  if (gate_ != nullptr) {
    AMUR_CHECK(!residual.defined(), "{}: gated norms stand behind the residual sum", name_);
    const TensorView normed = scratch.tensor(x.shape(), x.dtype());
    const TensorView past = scratch.tensor(x.shape(), x.dtype());
    ungated(context, x, normed, statistics);
    gate_backward(gate_->value, dy, x, gate_->sink_scale, normed, past, flat_sink(*gate_),
                  context.stream);
    dy = normed;  // now the norm's share
    residual = past;
  }
  const double scale = gain_sink.defined()   ? gain_->sink_scale
                       : bias_sink.defined() ? bias_->sink_scale
                                             : 0;
  norm_backward(kind_, dy, x, gain_->value, statistics.mean, statistics.rstd, residual, dx, scale,
                gain_sink, bias_sink, static_cast<int64_t>(statistics_width_), context.stream);
}

}  // namespace amur
