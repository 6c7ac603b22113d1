#include "src/train/data/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
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

void decompress(const std::string& path, const std::function<void(const char*, size_t)>& write) {
  { const Descriptor readable(path); }  // zlib does not say why it cannot open a file
  const std::unique_ptr<gzFile_s, int (*)(gzFile)> file(::gzopen(path.c_str(), "rb"), &::gzclose);
  if (!file) throw IoError("cannot open {}: {}", path, std::strerror(errno));
  ::gzbuffer(file.get(), 1 << 18);
  std::vector<char> block(1 << 20);
  for (;;) {
    const int count = ::gzread(file.get(), block.data(), static_cast<unsigned>(block.size()));
    if (count > 0) write(block.data(), static_cast<size_t>(count));
    if (count == static_cast<int>(block.size())) continue;
    int status = Z_OK;
    const char* reason = ::gzerror(file.get(), &status);
    if (status != Z_OK && status != Z_STREAM_END)
      throw IoError("{} cannot be decompressed: {}", path,
                    status == Z_BUF_ERROR ? "it ends too early" : reason);
    if (count <= 0) return;
  }
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
