// One residual block: a norm, a branch (attention or feed-forward), dropout, and the sum.
#pragma once

#include <memory>
#include <optional>
#include <span>

#include "kernels/elementwise.h"
#include "src/model/linear.h"
#include "src/model/norm.h"

namespace amur {

// What a block adds to the residual stream. Pushes what its backward needs on context.saved, unless
// that is null; its input is kept or recomputed by the caller.
class Branch {
 public:
  virtual ~Branch() = default;
  // n, y [T, d] activations; y is not n.
  virtual void forward(const Context& context, ConstTensorView n, TensorView y) const = 0;
  // dn = beta * dn + gradient of n. dn may be dy: it is written last. `bias_done`: the caller has
  // added the gradient of the last bias, that of `output_bias`.
  virtual void backward(const Context& context, ConstTensorView n, ConstTensorView dy, double beta,
                        TensorView dn, bool bias_done) const = 0;
  // Where the sums of dy's columns go, undefined where there is no such bias.
  virtual ColumnSink output_bias() const = 0;
  // Appends its products; `adds`: the backward's beta is not 0.
  virtual void list_products(const ProductListing& of, bool adds,
                             std::vector<Product>& list) const = 0;
  virtual size_t saved_bytes(int64_t tokens, DType dtype) const = 0;
  // Of sequences of these lengths.
  virtual double forward_flops(std::span<const int64_t> lengths) const = 0;
};

class ResidualBlock {
 public:
  ResidualBlock(std::optional<Norm> norm, std::unique_ptr<Branch> branch, NormPosition position,
                double dropout, uint64_t layer, DropoutPlace place);

  // From the residual stream x [T, d] and n [T, d], which is norm(x), or x where there is no norm.
  // Returns the output y. With context.saved it is pushed there with this block as its owner, so
  // that the next block can peek at its input; without, it replaces x. `next`, where it is not
  // null, is the norm behind: its n of y is set too, and may take the place of this one's.
  TensorView forward(const Context& context, TensorView x, ConstTensorView n, const Norm* next,
                     TensorView n_of_next) const;
  // g is the gradient of the output on entry and of x on return. Pops the output too.
  void backward(const Context& context, ConstTensorView x, TensorView g) const;

  void list_products(const ProductListing& of, std::vector<Product>& list) const;
  size_t saved_bytes(int64_t tokens, int64_t hidden, DType dtype) const;
  const Branch& branch() const { return *branch_; }
  std::optional<Norm>& norm() { return norm_; }
  const std::optional<Norm>& norm() const { return norm_; }

 private:
  std::optional<Norm> norm_;
  std::unique_ptr<Branch> branch_;
  NormPosition position_;
  double dropout_;
  uint64_t layer_;
  DropoutPlace place_;
};

}  // namespace amur
