// Read-only files as bytes: mapped where they are plain, decompressed where they end in .gz.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace amur {

// A whole file mapped read-only. Throws IoError that names the file and the reason.
class MappedFile {
 public:
  MappedFile() = default;
  explicit MappedFile(std::string path);
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  ~MappedFile();

  const std::string& path() const { return path_; }
  std::string_view bytes() const { return {data_, size_}; }
  // Gives back the pages touched so far, so that random access over a file larger than memory does
  // not count as memory of this process. They are read again on demand; any thread may be reading.
  void release() const;

 private:
  std::string path_;
  const char* data_ = nullptr;
  size_t size_ = 0;
};

// The bytes of a text file: a mapping, or a buffer for what was decompressed into memory.
class TextBytes {
 public:
  TextBytes() = default;
  // A name that ends in .gz is decompressed into memory.
  static TextBytes open(const std::string& path);
  std::string_view view() const {
    return file_.path().empty() ? std::string_view(buffer_) : file_.bytes();
  }
  void release() const {
    if (!file_.path().empty()) file_.release();
  }

 private:
  MappedFile file_;
  std::string buffer_;
};

bool is_gzip_name(const std::string& path);

// The bytes of a file from front to back, in little memory: as they are, decompressed where the
// name ends in .gz, or standard input for "-". Throws IoError that names the file and the reason.
class ByteSource {
 public:
  explicit ByteSource(const std::string& path);
  ~ByteSource();
  ByteSource(const ByteSource&) = delete;
  ByteSource& operator=(const ByteSource&) = delete;

  // At least one byte, unless it is the end: 0.
  size_t read(char* data, size_t size);
  // Whether `read` would return at once; waits up to so many seconds for that. Files never wait.
  bool ready(double seconds) const;
  // Of the file that was read, 0 to 1; not a number for what has no size, like a pipe.
  double share_read() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// Lines from front to back: without newline, carriage return before it and byte-order mark at the
// start.
class LineReader {
 public:
  explicit LineReader(const std::string& path) : source_(path), buffer_(1 << 20) {}
  bool next(std::string& line);  // false at the end
  // Whether `next` has at least something to look at; as ByteSource::ready.
  bool ready(double seconds) const { return at_ < end_ || source_.ready(seconds); }
  double share_read() const { return source_.share_read(); }

 private:
  ByteSource source_;
  std::vector<char> buffer_;
  size_t at_ = 0, end_ = 0;
  bool started_ = false;
};

// Decompresses a .gz file, piece by piece, through `write` (a callable of (const char*, size_t)).
// Throws IoError for a damaged or cut file.
void decompress(const std::string& path, const std::function<void(const char*, size_t)>& write);

struct FileStamp {
  uint64_t size = 0;
  int64_t modified = 0;  // nanoseconds
  uint64_t sampled = 0;  // hash of up to 64 blocks of 4 KiB spread evenly over the file
};
// Throws IoError if the file cannot be read or is not a regular file.
FileStamp stamp_of(const std::string& path);

}  // namespace amur
