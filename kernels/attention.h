// Bidirectional multi-head attention inside each packed sequence, of the whole of it or of a window
// around each token, and rotary positions.
//
// The probabilities are never stored: the backward recomputes them from the log-sum-exp of each row
// (Dao et al., FlashAttention, 2022).
#pragma once

#include "kernels/packed.h"
#include "src/core/tensor.h"

namespace amur {

// o[t, h, :] = sum_u dropout(softmax_u(scale * q[t,h].k[u,h])) v[u, h, :]
//   qkv  [T, 3, H, hd] activations     o [T, H, hd] activations
//   lse  [T, H] parameter dtype: log sum_u exp(scale * q.k), kept for the backward
// Dropout acts on the probabilities: position = query's position, element = h * 65536 + key's
// position, with h counted from dropout.first_head. Sequences are at most 65535 tokens; scale > 0.
//
// window > 0: u runs over the keys with |u - t| <= window only (Longformer, Beltagy et al., 2020;
// the local layers of ModernBERT, Warner et al., 2024), and the time is that of length x window. A
// window that holds the whole sequence gives the same bits as none.
void attention_forward(const PackedSequences& packed, ConstTensorView qkv, double scale,
                       DropoutSite dropout, TensorView o, TensorView lse, int64_t window = 0,
                       Stream stream = {});
// dqkv [T, 3, H, hd] is set; `output` is the forward's o.
void attention_backward(const PackedSequences& packed, ConstTensorView d_output,
                        ConstTensorView qkv, ConstTensorView output, ConstTensorView lse,
                        double scale, DropoutSite dropout, TensorView dqkv, int64_t window = 0,
                        Stream stream = {});

// Rotates q and k of qkv [T, 3, H, hd] in place (RoFormer, "half" layout as in ModernBERT: element
// j is paired with j + hd/2) by the angle position * base^(-2 (j mod p/2) / p), where p is the
// period: hd for the usual formula, less where a head holds copies of a smaller one. `inverse`
// rotates back, which is also the backward. hd and p must be even.
void rotary(const PackedSequences& packed, double base, int64_t period, bool inverse,
            TensorView qkv, Stream stream = {});

}  // namespace amur
