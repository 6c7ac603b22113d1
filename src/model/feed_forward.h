// The feed-forward network, plain or gated, as the branch of a residual block.
#pragma once

#include <span>
#include <string>

#include "src/model/linear.h"
#include "src/model/residual_block.h"

namespace amur {

// y = down(act(up(n))). Keeps the up-projection's output u [T, f] or [T, 2, f]; the activation is
// computed again in the backward, which is cheaper than to keep it.
class FeedForward final : public Branch {
 public:
  // `<name>.up.weight` [ffn, model] or, gated, [2, ffn, model], `.up.bias`, `.down.weight` [model,
  // ffn], `.down.bias`.
  FeedForward(const ModelConfig& config, const std::string& name, ParameterSet& parameters);

  void forward(const Context& context, ConstTensorView n, TensorView y) const override;
  void backward(const Context& context, ConstTensorView n, ConstTensorView dy, double beta,
                TensorView dn, bool bias_done) const override;
  ColumnSink output_bias() const override { return down_.bias_sink(); }
  void list_products(const ProductListing& of, bool adds,
                     std::vector<Product>& list) const override;
  size_t saved_bytes(int64_t tokens, DType dtype) const override;
  double forward_flops(std::span<const int64_t> lengths) const override;

 private:
  ActivationKind activation_;
  Linear up_, down_;
};

}  // namespace amur
