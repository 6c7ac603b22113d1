// The contrastive loss over the global batch: one call gives the loss, dL/dz of the local rows and
// the gradients of temperature and bias. The only place with collectives of embeddings.
//
// Sources: Su Jianlin, kexue.fm/archives/8471; Gao et al., GradCache (arXiv 2101.06983); Cheng et
// al., Inf-CL (arXiv 2410.17243); Zhai et al., SigLIP (arXiv 2303.15343); derived in
// docs/numerics.md.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "comm/communicator.h"
#include "kernels/product.h"
#include "src/core/tensor.h"
#include "src/train/config/config.h"

namespace amur {

// What one rank brings. Rows are unit vectors, on any device. b_r queries and n_r documents may be
// 0.
struct ContrastiveInput {
  ConstTensorView queries;                 // [b_r, e] f32 or f64
  ConstTensorView documents;               // [n_r, e]
  std::span<const uint64_t> query_ids;     // [b_r]
  std::span<const uint64_t> document_ids;  // [n_r]
  std::span<const int32_t> positive;       // [b_r] index into the local documents
  // Further right documents of query i are other_positives[other_first[i] .. other_first[i+1]-1].
  std::span<const int32_t> other_first;  // [b_r + 1] or empty
  std::span<const uint64_t> other_positives;
};

struct ContrastiveOutput {
  double loss = 0;            // of the global batch, the same on every rank
  double scale_gradient = 0;  // dL/dt with s = exp(t), complete, the same on every rank
  double bias_gradient = 0;   // dL/db, siglip
  int64_t queries = 0;        // N
  int64_t documents = 0;
  int64_t masked = 0;     // masked entries of the global logit matrix
  size_t peak_bytes = 0;  // extra memory of this rank
};

// S_ij = s q_i.k_j + b.
//   infonce: mean over the N global queries of -log softmax over documents at the positive;
//            symmetric: half of that and half of the same over queries for each positive document
//   siglip:  -1/N sum_ij log sigmoid(y_ij S_ij)
// Masked entries (where masking is on) have probability 0: documents equal to the positive of the
// row, further right documents of the row, positives of a row with the same query text. A row left
// with its positive alone has loss 0 and no gradient. No two queries share a positive (equal
// documents are rows of their own).
//
// With candidates `all` (one tower: SimCSE, kexue.fm/archives/8471) rows and columns are all texts.
// The rows that count are the 2N queries and positives, each the other's positive; a text's own
// entry is excluded, and texts equal to the row's are masked too. The loss is the mean over 2N
// rows, both directions already, so `symmetric` says nothing; hard negatives are columns only.
//
// With loss.precision bf16 and f32 embeddings, S is that of the embeddings rounded to bf16,
// computed from exact products summed in f32; dL/dS is computed from it in f32 and rounded to bf16
// on its way into the products with the rounded embeddings, which are summed in f32. What comes out
// is the gradient with respect to the rounded embeddings, taken for that of the given ones. Loss,
// scale and bias gradient see no rounding but the embeddings'. f64 embeddings are never rounded.
//
// `dq` [b_r, e] and `dk` [n_r, e], on the same device, are set to dL/dz of the local rows. A
// non-finite input makes the loss non-finite on every rank. Collective over `dp`: one all-gather of
// documents (and ids), rounded first where they are, two small all-reduces for the columns and one
// for the sums, one reduce-scatter, whatever the number of chunks. Memory O(N_documents * e), never
// b x N. The same input, grid, threads, instruction set and kind of device give the same bits.
ContrastiveOutput contrastive_loss(const LossConfig& config, double log_scale, double bias,
                                   const ContrastiveInput& input, TensorView dq, TensorView dk,
                                   Communicator& dp, Stream stream = {});

// Rows and columns of the tiles of logits on a device.
struct LossTile {
  int64_t rows, columns;
};
LossTile loss_tile(const LossConfig& config, Device device);

// What a rank has to do with.
struct LossExtent {
  int64_t queries = 0, documents = 0;          // of the rank
  int64_t all_queries = 0, all_documents = 0;  // of all ranks
  int64_t width = 0;
  int ranks = 1;
  DType dtype = DType::f32;  // of embeddings
};
// Bytes that the stage takes of the rank's memory beside its input and output (embeddings and
// their gradients), where no text is a duplicate and no query has further right documents; of a
// GPU's memory and the host's together, without what communication takes.
struct LossBytes {
  size_t embeddings = 0;   // copies: gathered, rounded
  size_t gradients = 0;    // of all documents, before they are summed over the ranks
  size_t tiles = 0;        // logits, and parts of their sums, later their gradients if rounded
  size_t statistics = 0;   // of rows and columns
  size_t bookkeeping = 0;  // ids, masks
  size_t work_space = 0;   // of the kernels, on a GPU

  size_t total() const {
    return embeddings + gradients + tiles + statistics + bookkeeping + work_space;
  }
};
LossBytes contrastive_loss_bytes(const LossConfig& config, const LossExtent& extent, Device device);

// The products that the stage computes there on this rank, each once.
std::vector<Product> contrastive_loss_products(const LossConfig& config, const LossExtent& extent,
                                               Device device);

}  // namespace amur
