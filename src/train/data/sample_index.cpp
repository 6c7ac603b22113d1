#include "src/train/data/sample_index.h"

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstdio>
#include <cstring>
#include <memory>

#include "src/core/error.h"
#include "src/core/hash.h"
#include "src/train/data/data.h"
#include "src/train/data/line_format.h"

namespace amur {
namespace {

constexpr int64_t kComplaints = 5;
constexpr uint64_t kMaxText = uint64_t{1} << 40;
constexpr uint64_t kReleaseEveryBytes = uint64_t{64} << 20;  // bytes of text read through
constexpr char kMagic[8] = {'A', 'm', 'u', 'r', 'I', 'd', 'x', '1'};

// Equal queries share their side of the split, so that none is both trained on and evaluated.
bool is_held_out(const std::string& query, double share) {
  return static_cast<double>(mix64(fnv1a(query)) >> 11) * 0x1.0p-53 < share;
}

}  // namespace

// At the start of an index file; samples, held-out entries and complaints follow.
struct SampleIndex::Header {
  char magic[8];
  uint64_t key;  // of options, source and text
  Counts counts;
  uint64_t complaint_bytes;
  uint64_t check;  // of what stands above

  uint64_t sum() const {
    return fnv1a({reinterpret_cast<const char*>(this), offsetof(Header, check)});
  }
};

SampleIndex::Counts SampleIndex::scan(const TextBytes& text, const std::string& name,
                                      const IndexOptions& options, const Sink& sink,
                                      std::vector<uint64_t>& held_out, std::string& complaints) {
  if (text.view().size() >= kMaxText)
    throw UsageError("{} holds {} bytes; a file may have at most 2^40: cut it into several sources",
                     name, text.view().size());
  Counts counts;
  RawSample sample;
  uint64_t released = 0;
  for_each_line(text.view(), [&](std::string_view line, size_t offset, int64_t number) {
    if (offset - released > kReleaseEveryBytes) {
      text.release();
      released = offset;
    }
    if (is_blank(line)) return;
    if (const std::string reason = parse_line(options.format, line, sample); !reason.empty()) {
      if (counts.malformed++ < kComplaints)
        complaints += fmt::format("{}:{}: {}\n", name, number, reason);
      return;
    }
    const uint64_t entry = uint64_t{offset} << 24 | std::min<uint64_t>(line.size(), kLongLine);
    if (is_held_out(sample.query, options.eval_share)) {
      held_out.push_back(entry);
      ++counts.held_out;
    } else {
      sink(entry);
      ++counts.samples;
    }
  });
  return counts;
}

SampleIndex SampleIndex::build(const TextBytes& text, const std::string& name,
                               const IndexOptions& options) {
  SampleIndex index;
  std::vector<uint64_t> held_out;
  index.counts_ = scan(
      text, name, options, [&](uint64_t entry) { index.memory_.push_back(entry); }, held_out,
      index.complaints_);
  index.memory_.insert(index.memory_.end(), held_out.begin(), held_out.end());
  return index;
}

uint64_t SampleIndex::key(const IndexOptions& options, const FileStamp& stamp,
                          uint64_t text_bytes) {
  return fnv1a(fmt::format("{} {} {} {} {} {}", static_cast<int>(options.format),
                           options.eval_share, stamp.size, stamp.modified, stamp.sampled,
                           text_bytes));
}

void SampleIndex::write(const std::string& path, const TextBytes& text, const std::string& name,
                        const IndexOptions& options, const FileStamp& stamp) {
  const auto fail = [&] {
    throw IoError("cannot write the index {}: {}", path, std::strerror(errno));
  };
  std::unique_ptr<std::FILE, int (*)(std::FILE*)> file(std::fopen(path.c_str(), "wbx"),
                                                       &std::fclose);
  if (!file) fail();
  const auto put = [&](const void* data, size_t bytes) {
    if (bytes > 0 && std::fwrite(data, 1, bytes, file.get()) != bytes) fail();
  };
  Header header{};
  put(&header, sizeof header);  // overwritten at the end: until then the file is not an index
  std::vector<uint64_t> held_out;
  std::string complaints;
  header.counts = scan(
      text, name, options, [&](uint64_t entry) { put(&entry, sizeof entry); }, held_out,
      complaints);
  put(held_out.data(), held_out.size() * sizeof(uint64_t));
  put(complaints.data(), complaints.size());
  std::memcpy(header.magic, kMagic, sizeof kMagic);
  header.key = key(options, stamp, text.view().size());
  header.complaint_bytes = complaints.size();
  header.check = header.sum();
  if (std::fseek(file.get(), 0, SEEK_SET) != 0) fail();
  put(&header, sizeof header);
  if (std::fclose(file.release()) != 0) fail();
}

SampleIndex SampleIndex::map(const std::string& path, const IndexOptions& options,
                             const FileStamp& stamp, uint64_t text_bytes) {
  SampleIndex index;
  index.file_ = MappedFile(path);
  const std::string_view bytes = index.file_.bytes();
  Header header{};
  if (bytes.size() < sizeof header) throw IoError("{} is not a complete index", path);
  std::memcpy(&header, bytes.data(), sizeof header);
  if (std::memcmp(header.magic, kMagic, sizeof kMagic) != 0 || header.check != header.sum())
    throw IoError("{} is not a complete index", path);
  if (header.key != key(options, stamp, text_bytes))
    throw IoError("{} belongs to another state of the file or to other options", path);
  const uint64_t entries = (header.counts.samples + header.counts.held_out) * sizeof(uint64_t);
  if (bytes.size() != sizeof header + entries + header.complaint_bytes)
    throw IoError("{} is not a complete index", path);
  index.counts_ = header.counts;
  index.complaints_ = bytes.substr(sizeof header + entries);
  return index;
}

uint64_t SampleIndex::entry(uint64_t i) const {
  if (file_.path().empty()) return memory_[i];
  uint64_t value;
  std::memcpy(&value, file_.bytes().data() + sizeof(Header) + i * sizeof value, sizeof value);
  return value;
}

}  // namespace amur
