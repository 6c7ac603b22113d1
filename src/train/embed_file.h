// `amur embed`: texts, one a line, to a matrix of unit vectors in input order.
#pragma once

#include <string>

#include "src/train/text_embedder.h"

namespace amur {

struct EmbedOptions {
  std::string input;   // file, or "-" for standard input
  std::string output;  // *.npy (NumPy, version 1.0) or *.h5 (data set /embeddings); f32, or f64 for
                       // a model in double precision
  std::string prefix;  // put before every text
  int tower = 0;       // 0 query, 1 document
};

struct EmbedResult {
  int64_t texts = 0, tokens = 0, truncated = 0;
  double seconds = 0;
};

// Reads in windows, so that memory does not grow with the input. The output appears under its name
// when it is complete. An empty line is a text of its own. Collective over all ranks; IoError on
// every rank.
EmbedResult embed_file(const EmbedOptions& options, TextEmbedder& embedder, Communicator& world);

}  // namespace amur
