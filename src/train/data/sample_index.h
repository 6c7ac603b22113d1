// The offset index of a TSV or JSONL file: 8 bytes a sample, built once, kept in a file.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "src/train/config/config.h"
#include "src/train/data/mapped_file.h"

namespace amur {

// What an index depends on besides the bytes of its source file.
struct IndexOptions {
  SourceFormat format = SourceFormat::tsv;
  double eval_share = 0;  // of the queries, held out by a hash of the query; 0: none
};

// Which lines of a text are training samples and which are held out for evaluation.
class SampleIndex {
 public:
  // An entry: offset of the line (40 bits) and its length (24 bits, at most kLongLine).
  static constexpr uint64_t kLongLine = (1 << 24) - 1;
  static uint64_t offset_of(uint64_t entry) { return entry >> 24; }
  static uint64_t length_of(uint64_t entry) { return entry & kLongLine; }

  SampleIndex() = default;
  // In memory. `name` stands for the text in complaints.
  static SampleIndex build(const TextBytes& text, const std::string& name,
                           const IndexOptions& options);
  // Into `path`, which must be new. `stamp` is that of the file the text comes from. Throws
  // IoError.
  static void write(const std::string& path, const TextBytes& text, const std::string& name,
                    const IndexOptions& options, const FileStamp& stamp);
  // Maps an index file. Throws IoError if it is not a complete one for these options, this stamp
  // and a text of this size.
  static SampleIndex map(const std::string& path, const IndexOptions& options,
                         const FileStamp& stamp, uint64_t text_bytes);

  int64_t samples() const { return static_cast<int64_t>(counts_.samples); }
  int64_t held_out() const { return static_cast<int64_t>(counts_.held_out); }
  int64_t malformed() const { return static_cast<int64_t>(counts_.malformed); }
  const std::string& complaints() const { return complaints_; }  // about the first few, a line each
  uint64_t sample(int64_t i) const { return entry(static_cast<uint64_t>(i)); }
  uint64_t held_out(int64_t i) const { return entry(counts_.samples + static_cast<uint64_t>(i)); }
  void release() const { file_.release(); }

 private:
  struct Counts {
    uint64_t samples = 0, held_out = 0, malformed = 0;
  };
  struct Header;
  using Sink = std::function<void(uint64_t)>;

  // Gives training entries to `sink` as they come and keeps the others; they are few.
  static Counts scan(const TextBytes& text, const std::string& name, const IndexOptions& options,
                     const Sink& sink, std::vector<uint64_t>& held_out, std::string& complaints);
  static uint64_t key(const IndexOptions& options, const FileStamp& stamp, uint64_t text_bytes);
  uint64_t entry(uint64_t i) const;

  Counts counts_;
  std::string complaints_;
  std::vector<uint64_t> memory_;  // training samples, then held-out ones
  MappedFile file_;               // or the same behind a header
};

}  // namespace amur
