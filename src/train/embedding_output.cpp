#include "src/train/embedding_output.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "src/core/hash.h"
#include "src/core/log.h"
#include "src/train/checkpoint/hdf5_file.h"
#include "src/train/text_windows.h"

namespace amur {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

constexpr int64_t kNpyHeader = 128;
constexpr const char* kRecordFormat = "amur-embed-part 1";

std::string hex(uint64_t value) {
  return fmt::format("{:016x}", value);
}

Json to_json(const EmbedRecord& r) {
  return {{"format", kRecordFormat}, {"model", r.model},        {"prefix", r.prefix},
          {"tower", r.tower},        {"width", r.width},        {"value_bytes", r.value_bytes},
          {"texts", r.texts},        {"bytes", r.bytes},        {"input", hex(r.input)},
          {"tokens", r.tokens},      {"truncated", r.truncated}};
}

EmbedRecord record_from(const std::string& path) {
  EmbedRecord r;
  try {
    std::ifstream file(path, std::ios::binary);
    const Json json = Json::parse(file);
    if (json.at("format") != kRecordFormat) throw UsageError("another format");
    r.model = json.at("model");
    r.prefix = json.at("prefix");
    r.tower = json.at("tower");
    r.width = json.at("width");
    r.value_bytes = json.at("value_bytes");
    r.texts = json.at("texts");
    r.bytes = json.at("bytes");
    r.input = std::stoull(json.at("input").get<std::string>(), nullptr, 16);
    r.tokens = json.at("tokens");
    r.truncated = json.at("truncated");
  } catch (const std::exception&) {
    throw UsageError("'{}' is no record of an interrupted job: remove it, or say --resume never",
                     path);
  }
  return r;
}

void write_all(int fd, const char* data, size_t size, const std::string& path) {
  while (size > 0) {
    const ssize_t count = ::write(fd, data, size);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) throw IoError("cannot write to '{}': {}", path, std::strerror(errno));
    data += count;
    size -= static_cast<size_t>(count);
  }
}

template <class T>
void append_numbers(const T* row, int64_t width, std::string& to) {
  std::array<char, 32> digits;
  for (int64_t k = 0; k < width; ++k) {
    const auto end = std::to_chars(digits.data(), digits.data() + digits.size(), row[k]).ptr;
    if (k > 0) to += ", ";
    to.append(digits.data(), end);
  }
}

}  // namespace

EmbeddingFormat embedding_format(const std::string& output) {
  if (output.ends_with(".npy")) return EmbeddingFormat::npy;
  if (output.ends_with(".h5")) return EmbeddingFormat::hdf5;
  if (output.ends_with(".jsonl") || output == "-") return EmbeddingFormat::jsonl;
  throw UsageError("--output '{}': give a name ending with .npy, .h5 or .jsonl, or -", output);
}

uint64_t hash_text(uint64_t before, const std::string& text) {
  return mix64(fnv1a(text, before ^ 0xcbf29ce484222325u));
}

void append_json_lines(std::span<const std::string> texts, size_t prefix, ConstTensorView rows,
                       std::string& to) {
  const int64_t width = rows.columns();
  dispatch_f32_f64(rows.dtype(), "append_json_lines", [&]<class T>() {
    for (size_t i = 0; i < texts.size(); ++i) {
      to += R"({"text": )";
      to += Json(texts[i].substr(prefix)).dump(-1, ' ', false, Json::error_handler_t::replace);
      to += R"(, "embedding": [)";
      append_numbers(rows.as<T>() + static_cast<int64_t>(i) * width, width, to);
      to += "]}\n";
    }
  });
}

struct EmbeddingOutput::State {
  std::string path, part, record_path;
  EmbeddingFormat format = EmbeddingFormat::npy;
  int fd = -1;
  EmbedRecord record;

  bool to_stdout() const { return path == "-"; }
  int64_t header_bytes() const { return format == EmbeddingFormat::jsonl ? 0 : kNpyHeader; }
  DType dtype() const { return record.value_bytes == 8 ? DType::f64 : DType::f32; }

  [[noreturn]] void fail(const char* what) const {
    throw IoError("cannot {} '{}': {}", what, part, std::strerror(errno));
  }

  ~State() {
    if (fd >= 0 && !to_stdout()) ::close(fd);
  }

  // Under a temporary name, then in place: the old one or the new one is there, whole.
  void write_record() const {
    const std::string temporary = record_path + ".tmp";
    const std::string text = to_json(record).dump(2) + "\n";
    const int file = ::open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (file < 0) throw IoError("cannot create '{}': {}", temporary, std::strerror(errno));
    try {
      write_all(file, text.data(), text.size(), temporary);
      if (::fsync(file) != 0)
        throw IoError("cannot write to '{}': {}", temporary, std::strerror(errno));
      ::close(file);
      fs::rename(temporary, record_path);
    } catch (...) {
      std::error_code ignored;
      ::close(file);
      fs::remove(temporary, ignored);
      throw;
    }
  }

  // NumPy's format, version 1.0: magic, version, header length, a Python dictionary, padding.
  std::string npy_header() const {
    std::string header("\x93NUMPY\x01\x00", 8);
    const auto length = static_cast<size_t>(kNpyHeader) - 10;
    header += static_cast<char>(length & 0xff);
    header += static_cast<char>(length >> 8);
    header += fmt::format("{{'descr': '<f{}', 'fortran_order': False, 'shape': ({}, {}), }}",
                          record.value_bytes, record.texts, record.width);
    header.resize(static_cast<size_t>(kNpyHeader) - 1, ' ');
    header += '\n';
    return header;
  }

  // The rows of the part as an HDF5 data set, window by window.
  void convert() const {
    const std::string h5 = path + ".h5.tmp";
    try {
      std::ifstream in(part, std::ios::binary);
      in.seekg(kNpyHeader);
      Hdf5File out(h5, Hdf5File::Mode::create);
      out.create_dataset("/embeddings", {record.texts, record.width}, dtype());
      for (int64_t first = 0; first < record.texts; first += kWindowTexts) {
        const int64_t count = std::min<int64_t>(kWindowTexts, record.texts - first);
        Tensor window({count, record.width}, dtype());
        in.read(static_cast<char*>(window.view().raw()),
                static_cast<std::streamsize>(window.bytes()));
        if (!in) throw IoError("cannot read back '{}'", part);
        out.write("/embeddings", {first, 0}, window);
      }
      out.close();
      fs::rename(h5, path);
      fs::remove(part);
    } catch (...) {
      std::error_code ignored;
      fs::remove(h5, ignored);
      throw;
    }
  }
};

EmbeddingOutput::EmbeddingOutput(const std::string& path, const EmbedRecord& wanted, bool resume)
    : state_(std::make_unique<State>()) {
  State& s = *state_;
  s.path = path;
  s.part = path + ".part";
  s.record_path = path + ".part.json";
  s.format = embedding_format(path);
  s.record = wanted;
  if (s.to_stdout()) {
    s.fd = STDOUT_FILENO;
    return;
  }
  s.fd = ::open(s.part.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666);
  if (s.fd < 0) s.fail("create");
  if (::flock(s.fd, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK)
    throw UsageError("another job is writing '{}'", s.part);
  struct stat status {};
  if (::fstat(s.fd, &status) != 0) s.fail("examine");
  if (resume && fs::exists(s.record_path)) {
    const EmbedRecord left = record_from(s.record_path);
    const char* other = left.model != wanted.model     ? "model"
                        : left.prefix != wanted.prefix ? "prefix"
                        : left.tower != wanted.tower   ? "tower"
                                                       : nullptr;
    if (other != nullptr)
      throw UsageError(
          "'{}' is of an interrupted job with another {}: give that again, or start anew with "
          "--resume never",
          s.part, other);
    if (status.st_size >= left.bytes)
      s.record = left;
    else
      Log::warn("'{}' is shorter than its record says: starting anew", s.part);
  }
  if (s.record.texts == 0) {
    s.record.bytes = s.header_bytes();
    fs::remove(s.record_path);
  }
  // What came after the last record was not finished.
  if (::ftruncate(s.fd, s.record.bytes) != 0) s.fail("write to");
  if (::lseek(s.fd, s.record.bytes, SEEK_SET) < 0) s.fail("write to");
}

EmbeddingOutput::~EmbeddingOutput() {
  const State& s = *state_;
  if (s.to_stdout() || s.fd < 0) return;
  std::error_code ignored;
  if (s.record.texts == 0) fs::remove(s.part, ignored);
}

const EmbedRecord& EmbeddingOutput::record() const {
  return state_->record;
}

void EmbeddingOutput::append(std::span<const std::string> texts, ConstTensorView rows,
                             EmbedRecord record) {
  State& s = *state_;
  std::string lines;
  const char* data = static_cast<const char*>(rows.raw());
  size_t size = rows.bytes();
  if (s.format == EmbeddingFormat::jsonl) {
    append_json_lines(texts, record.prefix.size(), rows, lines);
    data = lines.data();
    size = lines.size();
  }
  write_all(s.fd, data, size, s.to_stdout() ? "standard output" : s.part);
  record.bytes = s.record.bytes + static_cast<int64_t>(size);
  record.width = rows.columns();
  record.value_bytes = static_cast<int64_t>(size_of(rows.dtype()));
  if (s.to_stdout()) {
    s.record = record;
    return;
  }
  if (::fdatasync(s.fd) != 0) s.fail("write to");
  std::swap(s.record, record);
  try {
    s.write_record();
  } catch (...) {
    std::swap(s.record, record);
    throw;
  }
}

void EmbeddingOutput::finish() {
  const State& s = *state_;
  if (s.to_stdout()) return;
  if (s.format != EmbeddingFormat::jsonl) {
    const std::string header = s.npy_header();
    if (::lseek(s.fd, 0, SEEK_SET) < 0) s.fail("write to");
    write_all(s.fd, header.data(), header.size(), s.part);
  }
  if (::fsync(s.fd) != 0) s.fail("write to");
  if (s.format == EmbeddingFormat::hdf5)
    s.convert();
  else
    fs::rename(s.part, s.path);
  fs::remove(s.record_path);
}

}  // namespace amur
