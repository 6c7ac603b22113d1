// Activations of the feed-forward network.
#pragma once

#include "src/core/tensor.h"

namespace amur {

enum class ActivationKind : uint8_t { gelu, gelu_tanh, relu, swiglu, geglu };

// swiglu and geglu read two halves: input [T, 2, f], y = act(u[:, 0]) * u[:, 1], with act SiLU or
// GELU (erf). The others read [T, f].
constexpr bool is_gated(ActivationKind kind) {
  return kind == ActivationKind::swiglu || kind == ActivationKind::geglu;
}

// u [T, f] or [T, 2, f] (row-major [T, 2f]); y [T, f]. gelu: x * Phi(x) with erf; gelu_tanh: the
// tanh form of the GELU paper.
void activation_forward(ActivationKind kind, ConstTensorView u, TensorView y, Stream stream = {});
// What the backward pass has at hand; where undefined, it is not asked for.
struct ActivationExtras {
  TensorView y = {};  // the forward's result, with the same bits; may be dy
  TensorView sink =
      {};            // of the parameters' dtype [f] or [2f]: += scale * the sums of du's columns,
  double scale = 0;  // the gradient of a bias in u, by `accumulate_column_sums`' bits
};
// du has u's shape and may be u itself.
void activation_backward(ActivationKind kind, ConstTensorView dy, ConstTensorView u, TensorView du,
                         const ActivationExtras& also = {}, Stream stream = {});

}  // namespace amur
