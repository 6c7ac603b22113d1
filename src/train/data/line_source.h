// Users' own TSV and JSONL files, plain or .gz, of any size.
#pragma once

#include <memory>
#include <string>

#include "src/train/data/pair_source.h"

namespace amur {

// Files from this size on are not indexed in memory at each start: the index (and the text, if it
// is decompressed) goes to a cache file beside the source or in data.cache_dir, or where neither
// can be written to in the folder for temporary files.
constexpr int64_t kCacheFromBytes = int64_t{32} << 20;

// Where the shared files of a source lie; both empty for a source held in memory.
struct LineCache {
  std::string index;
  std::string text;  // of a decompressed source; else the source itself

  std::string packed() const { return index + '\n' + text; }
  static LineCache unpacked(const std::string& packed);
};

LineCache prepare_line_source(const SourceConfig& source, const DataConfig& config,
                              int64_t cache_from_bytes = kCacheFromBytes);
std::unique_ptr<PairSource> open_line_source(const SourceConfig& source, const DataConfig& config,
                                             const LineCache& cache);

}  // namespace amur
