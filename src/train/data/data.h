// Training and evaluation pairs from files, in an order that depends on the configuration only.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "comm/communicator.h"
#include "src/train/config/config.h"
#include "src/train/data/batch.h"
#include "src/train/data/tokenizer.h"

namespace amur {

// Texts of one sample as they stand in the source, prefixes not yet added.
struct RawSample {
  std::string query;
  std::vector<std::string> positives;  // at least one
  std::vector<std::string> negatives;
};

// Pairs for retrieval: distinct documents, distinct-by-row queries, the right documents of each.
struct EvalSet {
  std::string name;
  std::vector<std::string> queries, documents;  // with prefixes
  std::vector<std::vector<int32_t>> right;      // per query: indices in `documents`, ascending
};

// The samples of all configured sources. Files are mapped and an offset index (8 bytes a sample) is
// built once per file and shared through the page cache by the ranks of a node.
class Dataset {
 public:
  // Collective over `world`: rank 0 of each node builds missing indexes. Throws IoError or
  // UsageError on every rank.
  Dataset(const DataConfig& config, Communicator& world, Communicator& node);
  ~Dataset();

  int64_t samples() const;               // of the training split; global sample ids are below it
  RawSample sample(int64_t id) const;    // thread-safe
  int64_t text_bytes(int64_t id) const;  // without reading the text: how batches are balanced
  int source_of(int64_t id) const;
  const SourceConfig& source(int index) const;
  int sources() const;
  // Global ids first..last-1 of a source's samples.
  std::pair<int64_t, int64_t> range_of(int source) const;
  bool weighted() const;     // sources are drawn with replacement
  EvalSet eval_set() const;  // all sources' evaluation pairs, data.eval_limit applied
  // Fingerprint of every file (size and a hash of sampled blocks): kept in the checkpoint.
  std::string fingerprint() const;
  std::string report() const;  // lines for the log: sources, pairs, malformed lines

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// Texts of both sides of the training split for Tokenizer::train: those of all samples, or of
// `limit` samples spread evenly over a larger data set. `data` must outlive the function.
std::function<bool(std::string&)> vocabulary_texts(const Dataset& data, int64_t limit = 200'000);

// Yields this dp rank's share of each global batch. Threads read, draw and tokenize ahead; their
// number, data.threads (0: one), changes nothing in a batch.
class BatchStream {
 public:
  BatchStream(const Dataset& data, const Tokenizer& tokenizer, const Config& config, int dp_rank,
              int dp_size, DataPosition start);
  ~BatchStream();
  // The next batch; never ends (epochs follow each other, a batch never spans two). Rethrows what
  // the thread threw.
  LocalBatch next();

  // Batches of an epoch: ceil(samples / batch_size).
  static int64_t batches_per_epoch(const Dataset& data, const Config& config);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace amur
