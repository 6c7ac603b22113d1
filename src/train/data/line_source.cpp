#include "src/train/data/line_source.h"

#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <system_error>
#include <vector>

#include "src/core/error.h"
#include "src/core/hash.h"
#include "src/core/log.h"
#include "src/train/data/line_format.h"
#include "src/train/data/sample_index.h"

namespace amur {
namespace {

namespace fs = std::filesystem;

IndexOptions options_of(const SourceConfig& source, const DataConfig& config) {
  return {source.format, source.eval_path.empty() ? config.eval_share : 0.0};
}

// Folders for cache files in the order in which they are tried.
std::vector<fs::path> cache_folders(const SourceConfig& source, const DataConfig& config) {
  std::vector<fs::path> folders;
  if (config.cache_dir.empty()) {
    folders.push_back(fs::absolute(source.path).parent_path());
  } else {
    std::error_code ignored;  // writing into it fails with the reason
    fs::create_directories(config.cache_dir, ignored);
    folders.emplace_back(config.cache_dir);
  }
  const fs::path temporary = fs::temp_directory_path() / fmt::format("amur-cache-{}", ::getuid());
  std::error_code failed;
  if (fs::create_directory(temporary, failed))
    fs::permissions(temporary, fs::perms::owner_all, failed);
  folders.push_back(temporary);
  return folders;
}

// Whether a file can be made in a folder: tried, because permissions do not tell on every system.
bool is_writable(const fs::path& folder) {
  const fs::path probe = folder / fmt::format(".amur-probe-{}", ::getpid());
  std::FILE* file = std::fopen(probe.c_str(), "wbx");
  if (file == nullptr) return false;
  std::fclose(file);
  std::error_code ignored;
  fs::remove(probe, ignored);
  return true;
}

// Removes a temporary file unless it was renamed.
class Temporary {
 public:
  explicit Temporary(const std::string& final_path)
      : final_(final_path), path_(temporary_name(final_path)) {
    std::error_code ignored;
    fs::remove(path_, ignored);  // of an earlier process with our number
  }
  ~Temporary() {
    std::error_code ignored;
    fs::remove(path_, ignored);
  }
  Temporary(const Temporary&) = delete;
  Temporary& operator=(const Temporary&) = delete;
  const std::string& path() const { return path_; }
  void rename() const {
    std::error_code failed;
    fs::rename(path_, final_, failed);
    if (failed) throw IoError("cannot rename {} to {}: {}", path_, final_, failed.message());
  }

 private:
  // Unique over the hosts that may share the folder.
  static std::string temporary_name(const std::string& final_path) {
    char host[256] = {};
    ::gethostname(host, sizeof host - 1);
    return fmt::format("{}.{}.{}.tmp", final_path, host, ::getpid());
  }
  std::string final_, path_;
};

void write_text(const std::string& path, const std::string& source) {
  std::unique_ptr<std::FILE, int (*)(std::FILE*)> file(std::fopen(path.c_str(), "wbx"),
                                                       &std::fclose);
  const auto fail = [&] {
    throw IoError("cannot write the decompressed text {}: {}", path, std::strerror(errno));
  };
  if (!file) fail();
  decompress(source, [&](const char* data, size_t size) {
    if (std::fwrite(data, 1, size, file.get()) != size) fail();
  });
  if (std::fclose(file.release()) != 0) fail();
}

LineCache cache_in(const fs::path& folder, const SourceConfig& source,
                   const IndexOptions& options) {
  const fs::path path = fs::absolute(source.path);
  const auto name = [&](const std::string& what) {
    return (folder /
            fmt::format("{}.{:08x}", path.filename().string(), mix64(fnv1a(what)) & 0xffffffff))
        .string();
  };
  const std::string index_key =
      fmt::format("{} {} {}", path.string(), static_cast<int>(options.format), options.eval_share);
  return {name(index_key) + ".amur-index",
          is_gzip_name(source.path) ? name(path.string()) + ".amur-text" : source.path};
}

bool is_usable(const LineCache& cache, const IndexOptions& options, const FileStamp& stamp) {
  std::error_code failed;
  const auto text_bytes = fs::file_size(cache.text, failed);
  if (failed || !fs::exists(cache.index, failed)) return false;
  try {
    SampleIndex::map(cache.index, options, stamp, text_bytes);
    return true;
  } catch (const IoError&) {
    return false;  // stale or incomplete: made anew
  }
}

class LineSource final : public PairSource {
 public:
  LineSource(const SourceConfig& source, const DataConfig& config, const LineCache& cache)
      : source_(source), policy_(config.malformed) {
    const IndexOptions options = options_of(source, config);
    if (cache.index.empty()) {
      text_ = TextBytes::open(source.path);
      index_ = SampleIndex::build(text_, source.path, options);
    } else {
      text_ = TextBytes::open(cache.text);
      index_ = SampleIndex::map(cache.index, options, stamp_of(source.path), text_.view().size());
    }
    refuse_malformed(index_.malformed(), index_.complaints(), source.path);
    if (index_.samples() == 0)
      throw UsageError(
          "{} holds no training pairs ({} malformed lines, {} held out for evaluation)",
          source.path, index_.malformed(), index_.held_out());
  }

  int64_t samples() const override { return index_.samples(); }
  RawSample sample(int64_t index) const override { return read(index_.sample(index)); }
  int64_t text_bytes(int64_t index) const override {
    return static_cast<int64_t>(SampleIndex::length_of(index_.sample(index)));
  }

  std::vector<EvalPair> evaluation() const override {
    std::vector<EvalPair> pairs;
    const auto add = [&](const RawSample& sample) {
      for (const std::string& document : sample.positives)
        pairs.push_back({sample.query, document});
    };
    for (int64_t i = 0; i < index_.held_out(); ++i) {
      add(read(index_.held_out(i)));
      if (i % 1024 == 1023) release();
    }
    if (!source_.eval_path.empty()) {
      const TextBytes text = TextBytes::open(source_.eval_path);
      const SampleIndex index = SampleIndex::build(text, source_.eval_path, {source_.format, 0});
      refuse_malformed(index.malformed(), index.complaints(), source_.eval_path);
      RawSample sample;
      for (int64_t i = 0; i < index.samples(); ++i) {
        parse_line(source_.format, line_at(text.view(), SampleIndex::offset_of(index.sample(i))),
                   sample);
        add(sample);
      }
    }
    return pairs;
  }

  std::vector<std::string> files() const override {
    std::vector<std::string> files = {source_.path};
    if (!source_.eval_path.empty()) files.push_back(source_.eval_path);
    return files;
  }

  std::string report() const override {
    std::string text = fmt::format("{}: {} training samples, {} held out", source_.path, samples(),
                                   index_.held_out());
    if (index_.malformed() > 0)
      text += fmt::format(", {} malformed lines skipped; the first:\n{}", index_.malformed(),
                          trimmed(index_.complaints()));
    return text;
  }

  void release() const override {
    text_.release();
    index_.release();
  }

 private:
  void refuse_malformed(int64_t count, const std::string& complaints,
                        const std::string& path) const {
    if (count == 0 || policy_ == MalformedPolicy::skip) return;
    throw UsageError("{}: {} malformed {}:\n{}mend {}, or set data.malformed to skip", path, count,
                     count == 1 ? "line" : "lines", complaints, count == 1 ? "it" : "them");
  }

  RawSample read(uint64_t entry) const {
    const std::string_view text = text_.view();
    const uint64_t offset = SampleIndex::offset_of(entry), length = SampleIndex::length_of(entry);
    AMUR_CHECK(offset + length <= text.size(), "{} became shorter while it was in use",
               source_.path);
    const std::string_view line =
        length < SampleIndex::kLongLine ? text.substr(offset, length) : line_at(text, offset);
    RawSample sample;
    if (const std::string reason = parse_line(source_.format, line, sample); !reason.empty())
      throw IoError("{} changed while it was in use: at byte {}, {}", source_.path, offset, reason);
    return sample;
  }

  SourceConfig source_;
  MalformedPolicy policy_;
  TextBytes text_;
  SampleIndex index_;
};

}  // namespace

LineCache LineCache::unpacked(const std::string& packed) {
  const size_t middle = packed.find('\n');
  return {packed.substr(0, middle), packed.substr(middle + 1)};
}

LineCache prepare_line_source(const SourceConfig& source, const DataConfig& config,
                              int64_t cache_from_bytes) {
  if (fs::is_directory(source.path))
    throw UsageError("{} is a folder; name each of its files as a source of data.sources",
                     source.path);
  const FileStamp stamp = stamp_of(source.path);
  const int64_t expansion = is_gzip_name(source.path) ? 8 : 1;  // roughly, for text
  if (static_cast<int64_t>(stamp.size) < cache_from_bytes / expansion) return {};
  const IndexOptions options = options_of(source, config);
  const auto folders = cache_folders(source, config);
  for (const fs::path& folder : folders)
    if (LineCache cache = cache_in(folder, source, options); is_usable(cache, options, stamp))
      return cache;

  for (const fs::path& folder : folders) {
    if (!is_writable(folder)) {
      Log::warn_here("{}: its index cannot be kept in {}, which is not writable", source.path,
                     folder.string());
      continue;
    }
    const LineCache cache = cache_in(folder, source, options);
    const auto start = std::chrono::steady_clock::now();
    if (cache.text != source.path) {
      Log::info("{}: decompressing to {}", source.path, cache.text);
      const Temporary text(cache.text);
      write_text(text.path(), source.path);
      text.rename();
    }
    Log::info("{}: building the index {}", source.path, cache.index);
    const Temporary index(cache.index);
    SampleIndex::write(index.path(), TextBytes::open(cache.text), source.path, options, stamp);
    index.rename();
    const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
    Log::info("{}: indexed in {:.1f} s", source.path, elapsed.count());
    return cache;
  }
  throw IoError("the index of {} can be written neither to {} nor to {}: set data.cache_dir",
                source.path, folders.front().string(), folders.back().string());
}

std::unique_ptr<PairSource> open_line_source(const SourceConfig& source, const DataConfig& config,
                                             const LineCache& cache) {
  return std::make_unique<LineSource>(source, config, cache);
}

}  // namespace amur
