// `amur embed`: texts, one a line, to unit vectors in input order.
#pragma once

#include <string>

#include "src/train/text_embedder.h"

namespace amur {

struct EmbedOptions {
  std::string input;  // file, also .gz, or "-" for standard input
  // *.npy (NumPy, version 1.0), *.h5 (data set /embeddings), f32, or f64 for a model in double
  // precision; *.jsonl, a line {"text": "...", "embedding": [...]} a text, or "-" for such lines on
  // standard output. Numbers of JSON lines are the shortest that read back to the same f32 or f64;
  // the text is the line without the prefix, with U+FFFD for what is not UTF-8.
  std::string output;
  std::string prefix;  // put before every text
  int tower = 0;       // 0 query, 1 document
  bool resume = true;  // go on where an interrupted job stood
};

struct EmbedResult {
  int64_t texts = 0, tokens = 0, truncated = 0;
  int64_t resumed = 0;  // of the texts, done by an earlier job
  double seconds = 0;   // of this job
};

// Reads in windows, so that memory does not grow with the input. The output appears under its name
// when it is complete; until then OUTPUT.part holds the windows that are done and OUTPUT.part.json
// says what they are. A job that finds these goes on from there, reading and comparing the texts
// that are done; UsageError if these, the model or the options are others. Its output is that of a
// job without interruption, bit for bit where the two have the same threads and instruction set. An
// error leaves both files, once a window is done.
// To standard output there is nothing to resume; between windows from standard input, which then
// also end where the input pauses, its lines are flushed.
// An empty line is a text of its own. Collective over all ranks; errors on every rank.
EmbedResult embed_file(const EmbedOptions& options, TextEmbedder& embedder, Communicator& world);

}  // namespace amur
