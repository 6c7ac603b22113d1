// Multi-head self-attention inside each packed sequence, as the branch of a residual block.
#pragma once

#include <span>
#include <string>

#include "src/model/linear.h"
#include "src/model/residual_block.h"

namespace amur {

// With the heads spread over a tensor-parallel group, each rank attends with its own. The layer's
// number says whether it sees the whole text or a window of it, and its rotary base.
//
// Keeps qkv [T, 3, H, hd] (after rotary positions), the output of the heads [T, H, hd] and the
// log-sum-exp of the scores [T, H].
class Attention final : public Branch {
 public:
  // `<name>.qkv.weight` [3, heads, head, model], `.qkv.bias` [2, heads, head] of query and value,
  // `.key.bias` [heads, head] where asked for, `.output.weight` [model, heads, head],
  // `.output.bias`.
  Attention(const ModelConfig& config, int64_t layer, const std::string& name,
            ParameterSet& parameters);

  void forward(const Context& context, ConstTensorView n, TensorView y) const override;
  void backward(const Context& context, ConstTensorView n, ConstTensorView dy, double beta,
                TensorView dn, bool bias_done) const override;
  ColumnSink output_bias() const override { return output_.bias_sink(); }
  void list_products(const ProductListing& of, bool adds,
                     std::vector<Product>& list) const override;
  size_t saved_bytes(int64_t tokens, DType dtype) const override;
  double forward_flops(std::span<const int64_t> lengths) const override;

  const std::string& name() const { return name_; }
  // Of the scores q.k: 1/sqrt(head size) unless growth has changed the head size.
  double& scale() { return scale_; }

 private:
  Shape heads_shape(int64_t tokens) const;  // [T, H, hd], local heads
  Shape qkv_shape(int64_t tokens) const;    // [T, 3, H, hd]
  ConstTensorView bias_row(const Context& context, ScratchScope& scratch, DType activations) const;
  void accumulate_biases(const Context& context, ConstTensorView dqkv) const;
  DropoutSite dropout(const Context& context) const;

  std::string name_;
  uint64_t layer_;
  int64_t window_;  // that a token sees on either side; 0: the whole text
  double scale_;
  double dropout_;
  bool rotary_;
  double rotary_base_;
  int64_t rotary_period_;
  Parameter* qkv_weight_;
  Parameter* qkv_bias_ = nullptr;
  Parameter* key_bias_ = nullptr;
  Linear qkv_, output_;
};

}  // namespace amur
