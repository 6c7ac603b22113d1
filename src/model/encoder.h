// The text encoder: embedding, layers, pooling, projection.
//
//   x_0     = dropout(norm(tokens + positions + token type))
//   x_{b+1} = x_b + dropout(f_b(norm(x_b)))           pre-norm (the ModernBERT class)
//   x_{b+1} = n_b + dropout(f_b(n_b)), n_b = norm(x_b)  post-norm (the BERT class)
//   h       = projection(pool(norm(x_2L)))
//
// with f attention and feed-forward in turn, and no norm in front of the first block. Both classes
// are thus one chain of (norm, branch) blocks behind a normalised embedding, and differ in what the
// residual carries; "post-norm" is the usual name because n_b belongs to the block before it.
// Under model.local_attention, the attention of all layers but each n-th sees a window around each
// token, and turns by frequencies of its own (ModernBERT, Warner et al., 2024).
// With 0 layers there is neither a norm nor a position: h = projection(pool(dropout(tokens))).
#pragma once

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "src/model/model_config.h"
#include "src/model/module.h"
#include "src/model/parameter.h"

namespace amur {

// A number of the model that is no parameter, but that a checkpoint keeps and growth may change:
// the eps of a norm ("query.norm.eps"), how many coordinates its statistics are of
// ("query.norm.statistics_width"), the scale of an attention ("query.layers.0.attention.scale").
enum class ConstantKind : uint8_t { norm_eps, norm_statistics_width, attention_scale };
struct ModelConstant {
  std::string name;
  ConstantKind kind;
  double* value;  // inside the encoder
};

struct Product;         // kernels/product.h
struct ProductListing;  // src/model/linear.h

class Encoder {
 public:
  // Registers its parameters as `prefix`.* in `parameters`, which must outlive it. Throws
  // UsageError where the options do not fit together.
  Encoder(const ModelConfig& config, const std::string& prefix, ParameterSet& parameters);
  ~Encoder();

  // h [S, e] parameter dtype: embeddings before normalisation. Pushes what the backward needs on
  // context.saved, unless that is null. Pooling and projection are computed in parameter dtype:
  // they see one row a sequence, which costs nothing, and embeddings keep full precision under
  // bf16.
  void forward(const Context& context, TensorView h);
  // From dh [S, e] (may be overwritten); pops what the forward of the same chunk pushed and adds to
  // the gradient sinks.
  void backward(const Context& context, TensorView dh);

  // The parameters in the order in which `backward` finishes them: those of each layer, the last
  // layer first, then the others.
  std::vector<std::vector<Parameter*>> backward_groups();

  // Appends the products of the blocks, in which nearly all operations are.
  void list_products(const ProductListing& of, std::vector<Product>& list) const;
  // Bytes that `forward` leaves in context.saved for a chunk of this size, exactly (on this tp
  // rank, once the parameters are allocated).
  size_t saved_bytes(int64_t tokens, int64_t sequences, DType dtype) const;
  // FLOPs of the GEMMs and attention of one forward over sequences of these lengths. Without the
  // projection.
  double forward_flops(std::span<const int64_t> lengths) const;
  int64_t embedding_size() const;
  // The token table: its rows are updated lazily.
  Parameter& token_table();
  Parameter* position_table();  // null where positions are not learned
  std::vector<ModelConstant> constants();

 private:
  struct Parts;
  std::unique_ptr<Parts> parts_;
};

}  // namespace amur
