#include "src/train/data/mapped_file.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <limits>
#include <memory>
#include <utility>
#include <vector>

#include "src/core/error.h"
#include "src/core/hash.h"

namespace amur {
namespace {

class Descriptor {
 public:
  explicit Descriptor(const std::string& path) : fd_(::open(path.c_str(), O_RDONLY | O_CLOEXEC)) {
    if (fd_ < 0) throw IoError("cannot open {}: {}", path, std::strerror(errno));
    if (::fstat(fd_, &status_) != 0) {
      const int reason = errno;
      ::close(fd_);
      throw IoError("cannot examine {}: {}", path, std::strerror(reason));
    }
    if (!S_ISREG(status_.st_mode)) {
      ::close(fd_);
      throw IoError("{} is not a regular file", path);
    }
  }
  ~Descriptor() { ::close(fd_); }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  int get() const { return fd_; }
  const struct stat& status() const { return status_; }

 private:
  int fd_;
  struct stat status_ {};
};

}  // namespace

MappedFile::MappedFile(std::string path) : path_(std::move(path)) {
  const Descriptor file(path_);
  size_ = static_cast<size_t>(file.status().st_size);
  if (size_ == 0) return;
  void* data = ::mmap(nullptr, size_, PROT_READ, MAP_SHARED, file.get(), 0);
  if (data == MAP_FAILED) throw IoError("cannot map {}: {}", path_, std::strerror(errno));
  data_ = static_cast<const char*>(data);
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : path_(std::exchange(other.path_, {})),
      data_(std::exchange(other.data_, nullptr)),
      size_(std::exchange(other.size_, 0)) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) ::munmap(const_cast<char*>(data_), size_);
}

void MappedFile::release() const {
  if (data_ != nullptr) ::madvise(const_cast<char*>(data_), size_, MADV_DONTNEED);
}

bool is_gzip_name(const std::string& path) {
  return path.ends_with(".gz");
}

struct ByteSource::State {
  std::string path;
  int fd = -1;
  bool owned = false;  // the descriptor, unless zlib has taken it over
  gzFile zip = nullptr;
  uint64_t size = 0;  // 0: unknown
  uint64_t done = 0;

  ~State() {
    if (zip != nullptr) ::gzclose(zip);
    if (owned) ::close(fd);
  }
};

ByteSource::ByteSource(const std::string& path) : state_(std::make_unique<State>()) {
  State& s = *state_;
  s.path = path;
  s.fd = STDIN_FILENO;
  if (path == "-") return;
  s.fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (s.fd < 0) throw IoError("cannot open '{}': {}", path, std::strerror(errno));
  s.owned = true;
  struct stat status {};
  if (::fstat(s.fd, &status) != 0)
    throw IoError("cannot examine '{}': {}", path, std::strerror(errno));
  if (S_ISDIR(status.st_mode)) throw IoError("'{}' is a folder", path);
  if (S_ISREG(status.st_mode)) s.size = static_cast<uint64_t>(status.st_size);
  if (!is_gzip_name(path)) return;
  s.zip = ::gzdopen(s.fd, "rb");
  if (s.zip == nullptr) throw IoError("cannot decompress '{}': not enough memory", path);
  s.owned = false;
  ::gzbuffer(s.zip, 1 << 18);
}

ByteSource::~ByteSource() = default;

size_t ByteSource::read(char* data, size_t size) {
  State& s = *state_;
  if (s.zip != nullptr) {
    const int count = ::gzread(s.zip, data, static_cast<unsigned>(std::min<size_t>(size, 1 << 30)));
    if (count > 0) return static_cast<size_t>(count);
    int status = Z_OK;
    const char* reason = ::gzerror(s.zip, &status);
    if (status != Z_OK && status != Z_STREAM_END)
      throw IoError("{} cannot be decompressed: {}", s.path,
                    status == Z_BUF_ERROR ? "it ends too early" : reason);
    return 0;
  }
  for (;;) {
    const ssize_t count = ::read(s.fd, data, size);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) throw IoError("cannot read '{}': {}", s.path, std::strerror(errno));
    s.done += static_cast<uint64_t>(count);
    return static_cast<size_t>(count);
  }
}

bool ByteSource::ready(double seconds) const {
  if (state_->zip != nullptr || state_->size > 0) return true;
  pollfd waiting{state_->fd, POLLIN, 0};
  // Whatever is wrong with it, `read` will say.
  return ::poll(&waiting, 1, static_cast<int>(1000 * seconds)) != 0;
}

double ByteSource::share_read() const {
  const State& s = *state_;
  if (s.size == 0) return std::numeric_limits<double>::quiet_NaN();
  const auto done =
      s.zip != nullptr ? static_cast<double>(::gzoffset(s.zip)) : static_cast<double>(s.done);
  return std::min(1.0, done / static_cast<double>(s.size));
}

bool LineReader::next(std::string& line) {
  constexpr std::string_view kByteOrderMark = "\xEF\xBB\xBF";
  line.clear();
  bool found = false, whole = false;
  while (!whole) {
    if (at_ == end_) {
      at_ = 0;
      end_ = source_.read(buffer_.data(), buffer_.size());
      if (end_ == 0) break;
    }
    found = true;
    const char* begin = buffer_.data() + at_;
    const auto* newline = static_cast<const char*>(std::memchr(begin, '\n', end_ - at_));
    whole = newline != nullptr;
    const size_t length = whole ? static_cast<size_t>(newline - begin) : end_ - at_;
    line.append(begin, length);
    at_ += length + (whole ? 1 : 0);
  }
  if (!found) return false;
  if (!started_ && line.starts_with(kByteOrderMark)) line.erase(0, kByteOrderMark.size());
  started_ = true;
  if (line.ends_with('\r')) line.pop_back();
  return true;
}

void decompress(const std::string& path, const std::function<void(const char*, size_t)>& write) {
  ByteSource source(path);
  std::vector<char> block(1 << 20);
  while (const size_t count = source.read(block.data(), block.size())) write(block.data(), count);
}

TextBytes TextBytes::open(const std::string& path) {
  TextBytes text;
  if (is_gzip_name(path))
    decompress(path, [&](const char* data, size_t size) { text.buffer_.append(data, size); });
  else
    text.file_ = MappedFile(path);
  return text;
}

FileStamp stamp_of(const std::string& path) {
  constexpr uint64_t kBlock = 4096, kBlocks = 64;
  const Descriptor file(path);
  FileStamp stamp;
  stamp.size = static_cast<uint64_t>(file.status().st_size);
  stamp.modified =
      int64_t{file.status().st_mtim.tv_sec} * 1'000'000'000 + file.status().st_mtim.tv_nsec;
  stamp.sampled = fnv1a("");
  std::array<char, kBlock> block;
  const uint64_t last = stamp.size > kBlock ? stamp.size - kBlock : 0;
  const uint64_t blocks = std::min(kBlocks, stamp.size / kBlock + 1);
  for (uint64_t i = 0; i < blocks; ++i) {
    const uint64_t offset =
        blocks == 1 ? 0 : last / (blocks - 1) * i + last % (blocks - 1) * i / (blocks - 1);
    ssize_t count = ::pread(file.get(), block.data(), kBlock, static_cast<off_t>(offset));
    if (count < 0) throw IoError("cannot read {}: {}", path, std::strerror(errno));
    stamp.sampled = fnv1a({block.data(), static_cast<size_t>(count)}, stamp.sampled);
  }
  return stamp;
}

}  // namespace amur
