// Token and position lookup, and its scatter; pooling of sequences; unit-length embeddings.
#pragma once

#include "kernels/packed.h"
#include "src/core/tensor.h"

namespace amur {

// Which rows of a token table a tensor holds: those from `first` on, of `whole` (-1: all are here).
struct TableRows {
  int64_t first = 0;
  int64_t whole = -1;
};

// y[t, :] = tokens[ids[t] - rows.first, :] (+ positions[position of t in its sequence, :]), and 0,
// without the position, where another rank holds the row: the sum over ranks is the whole lookup to
// the bit.
//   ids [T] i32 in the whole table (checked); tables [V, d], [P, d] both of parameter dtype or both
//   bf16, positions may be undefined; y [T, d] activations
void embedding_forward(const PackedSequences& packed, ConstTensorView ids, ConstTensorView tokens,
                       ConstTensorView positions, TensorView y, TableRows rows = {},
                       Stream stream = {});
// sinks (either may be undefined) += sink_scale * the rows of dy; tokens whose row another rank
// holds add to positions_sink only. Deterministic for any thread count: the rows of one id are
// added in token order. Sinks are of parameter dtype or bf16; one in bf16 is rounded once, to
// nearest, with all that a call adds to a row.
void embedding_backward(const PackedSequences& packed, ConstTensorView ids, ConstTensorView dy,
                        double sink_scale, TensorView tokens_sink, TensorView positions_sink,
                        TableRows rows = {}, Stream stream = {});
// y[t, 2i] += sin(p w_i), y[t, 2i+1] += cos(p w_i), w_i = 10000^(-2i/d), p the position (Vaswani
// 2017)
void add_sinusoidal_positions(const PackedSequences& packed, TensorView y, Stream stream = {});

// f.operator()<T, P>() for activations T and tables or sinks P.
template <class F>
void dispatch_table(DType activation, DType table, const char* op, const F& f) {
  dispatch_float(activation, op, [&]<class T>() {
    if (table != DType::bf16) return f.template operator()<T, AccumulateType<T>>();
    if constexpr (!std::is_same_v<T, double>) f.template operator()<T, bf16>();
  });
}

enum class PoolingKind : uint8_t { mean, cls };

// h[s, :] = mean over the tokens of sequence s, or its first token.   x [T, d], h [S, d] parameter
// dtype
void pooling_forward(PoolingKind kind, const PackedSequences& packed, ConstTensorView x,
                     TensorView h, Stream stream = {});
// dx [T, d] is set.
void pooling_backward(PoolingKind kind, const PackedSequences& packed, ConstTensorView dh,
                      TensorView dx, Stream stream = {});

// z = h / |h|, norm[s] = |h[s]|.   h, z [S, e], norm [S], parameter dtype; z may be h. A zero row
// gives a zero z and norm 0.
void normalise_forward(ConstTensorView h, TensorView z, TensorView norm, Stream stream = {});
// dh = (dz - z (z.dz)) / |h|, 0 where the norm is 0; dh may be dz.
void normalise_backward(ConstTensorView dz, ConstTensorView z, ConstTensorView norm, TensorView dh,
                        Stream stream = {});

}  // namespace amur
