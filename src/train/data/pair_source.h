// One configured source of pairs: its files, its training samples by index, its evaluation pairs.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "src/train/data/data.h"

namespace amur {

// A pair kept for evaluation, prefixes not yet added.
struct EvalPair {
  std::string query, document;
};

class PairSource {
 public:
  virtual ~PairSource() = default;
  virtual int64_t samples() const = 0;  // of the training split
  // Thread-safe, 0 <= index < samples().
  virtual RawSample sample(int64_t index) const = 0;
  // Bytes of the texts of a sample, roughly, from the index alone.
  virtual int64_t text_bytes(int64_t index) const = 0;
  virtual std::vector<EvalPair> evaluation() const = 0;
  virtual std::vector<std::string> files() const = 0;
  virtual std::string report() const = 0;  // one line
  // Gives back memory of pages that were touched.
  virtual void release() const = 0;
};

// Makes what ranks of a node share (decompressed text, offset index) and says where it is, for
// `open_source`. Run by one rank of each node. Throws IoError or UsageError.
std::string prepare_source(const SourceConfig& source, const DataConfig& config);
// Throws IoError or UsageError.
std::unique_ptr<PairSource> open_source(const SourceConfig& source, const DataConfig& config,
                                        const std::string& prepared);

// White space of ASCII removed at both ends.
std::string_view trimmed(std::string_view text);
// The form in which two texts count as equal for the splits: ASCII lower-cased, white space
// collapsed.
std::string folded(std::string_view text);
// 64-bit identity of a text: equal for equal texts, whatever their source.
uint64_t text_identity(std::string_view text);

}  // namespace amur
