// Where the vectors of `amur embed` go.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "src/core/tensor.h"

namespace amur {

enum class EmbeddingFormat : uint8_t { npy, hdf5, jsonl };
// By the end of the name; jsonl for "-". UsageError for any other.
EmbeddingFormat embedding_format(const std::string& output);

// What is known of a job that has not finished: the record beside its rows.
struct EmbedRecord {
  std::string model;  // TextEmbedder::fingerprint
  std::string prefix;
  int tower = 0;
  int64_t width = 0;  // of a row; 0 before the first
  int64_t value_bytes = 0;
  int64_t texts = 0;   // done
  int64_t bytes = 0;   // of the rows in the file
  uint64_t input = 0;  // hash of the texts done, see hash_text
  int64_t tokens = 0, truncated = 0;
};
uint64_t hash_text(uint64_t before, const std::string& text);

// Rows in OUTPUT.part until all are there. One process has it at a time (a lock on that file). All
// errors are IoError or UsageError.
class EmbeddingOutput {
 public:
  // Takes up what an earlier job of the same `wanted` model, prefix and tower has left, unless
  // `resume` is false; UsageError that names what differs.
  EmbeddingOutput(const std::string& path, const EmbedRecord& wanted, bool resume);
  // Removes the files, unless windows are done.
  ~EmbeddingOutput();
  EmbeddingOutput(const EmbeddingOutput&) = delete;
  EmbeddingOutput& operator=(const EmbeddingOutput&) = delete;

  const EmbedRecord& record() const;
  // The rows [texts, e] of the next window, of which `record` (bytes are filled in) says what is
  // done with them. On disk when it returns.
  void append(std::span<const std::string> texts, ConstTensorView rows, EmbedRecord record);
  void finish();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// Appends {"text": ..., "embedding": [...]} and a newline for each row.
void append_json_lines(std::span<const std::string> texts, size_t prefix, ConstTensorView rows,
                       std::string& to);

}  // namespace amur
