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
// du has u's shape and may be u itself.
void activation_backward(ActivationKind kind, ConstTensorView dy, ConstTensorView u, TensorView du,
                         Stream stream = {});

}  // namespace amur
