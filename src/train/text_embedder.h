// Embeddings of texts, spread over the dp ranks; the ranks of a tp group do the same texts.
#pragma once

#include <span>
#include <string>

#include "comm/communicator.h"
#include "src/train/data/tokenizer.h"
#include "src/train/embedding_model.h"

namespace amur {

class Runtime;

class TextEmbedder {
 public:
  TextEmbedder(EmbeddingModel& model, const Tokenizer& tokenizer, const Config& config,
               Communicator& dp, Runtime& runtime);

  // Unit vectors [texts, e] in input order, on every rank, in the parameter dtype. `tower` is 0 for
  // queries and 1 for documents. Every rank passes the same texts and tokenizes and encodes its
  // share. Chunks are cut from the texts alone, so a row has the same bits at any number of ranks.
  Tensor embed(std::span<const std::string> texts, int tower);

  // Names the function from texts to vectors: weights, constants, vocabulary and what else of the
  // configuration has a say, but for the number of ranks. Reads all weights. Collective.
  std::string fingerprint();

  // Tells the watchdog that waiting for texts is no standstill.
  void advance();

  // Of this rank, and 0 but on the first of a tp group: sums over all ranks count each text once.
  int64_t truncated() const { return truncated_; }  // texts cut at max_length
  int64_t tokens() const { return tokens_; }

 private:
  EmbeddingModel& model_;
  const Tokenizer& tokenizer_;
  const Config& config_;
  Communicator& dp_;
  Runtime& runtime_;
  SavedTensors scratch_;
  int64_t truncated_ = 0, tokens_ = 0;
};

}  // namespace amur
