#include "src/model/residual_block.h"

#include <utility>

#include "kernels/elementwise.h"

namespace amur {

ResidualBlock::ResidualBlock(std::optional<Norm> norm, std::unique_ptr<Branch> branch,
                             NormPosition position, double dropout, uint64_t layer,
                             DropoutPlace place)
    : norm_(std::move(norm)),
      branch_(std::move(branch)),
      position_(position),
      dropout_(dropout),
      layer_(layer),
      place_(place) {}

TensorView ResidualBlock::forward(const Context& context, TensorView x, ConstTensorView n,
                                  const Norm* next, TensorView n_of_next) const {
  ScratchScope scratch(*context.scratch);
  // The output lies below what the branch keeps: it is read by the next block's backward, which
  // runs before this one's.
  const TensorView y = context.saved ? context.saved->push(this, x.shape(), x.dtype()) : x;
  const TensorView added = context.saved ? y : scratch.tensor(x.shape(), x.dtype());
  branch_->forward(context, n, added);
  const ConstTensorView residual = position_ == NormPosition::pre ? ConstTensorView(x) : n;
  const DropoutSite site = context.dropout(dropout_, layer_, place_);
  if (next)
    next->add_forward(context, site, added, residual, y, n_of_next);
  else
    dropout_add_forward(context.chunk->packed, site, added, residual, y, context.stream);
  return y;
}

void ResidualBlock::backward(const Context& context, ConstTensorView x, TensorView g) const {
  ScratchScope scratch(*context.scratch);
  ConstTensorView d_added = g;
  bool bias_done = false;
  const DropoutSite site = context.dropout(dropout_, layer_, place_);
  if (site.probability > 0) {
    const TensorView masked = scratch.tensor(g.shape(), g.dtype());
    const ColumnSink bias = branch_->output_bias();
    dropout_backward(context.chunk->packed, site, g, masked, bias, context.stream);
    d_added = masked;
    bias_done = bias.sink.defined();
  }
  if (!norm_) {
    branch_->backward(context, x, d_added, 1, g, bias_done);
  } else {
    const TensorView n = scratch.tensor(x.shape(), x.dtype());
    const NormStatistics statistics = norm_->statistics(scratch, x);
    norm_->forward(context, x, n, statistics);
    if (position_ == NormPosition::post) {
      branch_->backward(context, n, d_added, 1, g, bias_done);
      norm_->backward(context, g, x, statistics, {}, g);
    } else {
      // The branch reads n for the last time before it writes dn, but a GEMM cannot overwrite its
      // own operand: the gradient needs a place of its own.
      const TensorView dn = scratch.tensor(x.shape(), x.dtype());
      branch_->backward(context, n, d_added, 0, dn, bias_done);
      norm_->backward(context, dn, x, statistics, g, g);
    }
  }
  context.saved->pop(this);
}

void ResidualBlock::list_products(const ProductListing& of, std::vector<Product>& list) const {
  branch_->list_products(of, !norm_ || position_ == NormPosition::post, list);
}

size_t ResidualBlock::saved_bytes(int64_t tokens, int64_t hidden, DType dtype) const {
  return SavedTensors::rounded_bytes({tokens, hidden}, dtype) + branch_->saved_bytes(tokens, dtype);
}

}  // namespace amur
