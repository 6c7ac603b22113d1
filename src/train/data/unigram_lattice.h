// All segmentations of a text into pieces of a unigram vocabulary: the best one, and one drawn.
//
// SentencePiece draws from a generator of its own that cannot be keyed, so subword regularisation
// (Kudo, arXiv:1804.10959) is done here: forward filtering, backward sampling over the lattice.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "src/core/random.h"

namespace amur {

class UnigramLattice {
 public:
  struct Piece {
    std::string_view text;
    int32_t id;
    double score;  // natural logarithm of its probability
  };
  static constexpr int32_t kUnknown = -1;

  explicit UnigramLattice(const std::vector<Piece>& pieces);

  // A part of the text: its piece, or kUnknown for a character outside the vocabulary.
  struct Part {
    int32_t id;
    uint32_t first, length;  // bytes of the text
  };
  // The segmentation of highest score, summed in double precision from the left; of equal ones that
  // with the longer piece behind, as Hugging Face's tokenizers choose. `text` is as for `sample`.
  std::vector<Part> best(std::string_view text) const;

  // Draws a segmentation with probability proportional to exp(alpha * sum of scores): a function of
  // text, alpha and key. `text` is normalised as the vocabulary's own texts were.
  std::vector<Part> sample(std::string_view text, double alpha, RandomKey key) const;

 private:
  struct Node {
    int32_t id = kUnknown;  // piece that ends here
    double score = 0;
  };
  // Calls f(id, length, score) for the pieces with which the text begins at `first`, or for its
  // first character where none has its length.
  template <class F>
  void for_each_piece(std::string_view text, uint32_t first, const F& f) const;
  uint32_t child(uint32_t node, unsigned char byte) const;  // 0: none, the root is no child

  std::vector<Node> nodes_;
  // Open addressing: (node * 256 + byte) -> child.
  std::vector<uint64_t> edge_keys_;
  std::vector<uint32_t> edge_children_;
  uint64_t edge_mask_ = 0;
  double unknown_score_ = 0;
};

}  // namespace amur
