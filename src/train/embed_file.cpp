#include "src/train/embed_file.h"

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iostream>

#include "src/core/log.h"
#include "src/train/checkpoint/hdf5_file.h"
#include "src/train/stopwatch.h"

namespace amur {
namespace {

constexpr size_t kWindowTexts = 16384;
constexpr size_t kNpyHeader = 128;

// Rows of vectors in input order, first as a .npy file under a temporary name.
class EmbeddingFile {
 public:
  explicit EmbeddingFile(const std::string& path)
      : path_(path),
        temporary_(path + ".tmp"),
        file_(temporary_, std::ios::binary | std::ios::trunc) {
    file_.write(std::string(kNpyHeader, ' ').data(), kNpyHeader);
    check("create");
  }
  ~EmbeddingFile() {
    std::error_code ignored;
    file_.close();
    std::filesystem::remove(temporary_, ignored);
  }
  EmbeddingFile(const EmbeddingFile&) = delete;
  EmbeddingFile& operator=(const EmbeddingFile&) = delete;

  void append(ConstTensorView rows) {
    width_ = rows.columns();
    dtype_ = rows.dtype();
    rows_ += rows.rows();
    file_.write(static_cast<const char*>(rows.raw()), static_cast<std::streamsize>(rows.bytes()));
    check("write to");
  }

  void finish() {
    // NumPy's format, version 1.0: magic, version, header length, a Python dictionary, padding.
    std::string header("\x93NUMPY\x01\x00", 8);
    const size_t length = kNpyHeader - 10;
    header += static_cast<char>(length & 0xff);
    header += static_cast<char>(length >> 8);
    header += fmt::format("{{'descr': '<f{}', 'fortran_order': False, 'shape': ({}, {}), }}",
                          size_of(dtype_), rows_, width_);
    header.resize(kNpyHeader - 1, ' ');
    header += '\n';
    file_.seekp(0);
    file_.write(header.data(), static_cast<std::streamsize>(header.size()));
    file_.close();
    check("write to");
    if (path_.ends_with(".h5")) convert();
    std::filesystem::rename(temporary_, path_);
  }

 private:
  void check(const char* what) {
    if (!file_) throw IoError("cannot {} '{}': {}", what, temporary_, std::strerror(errno));
  }

  // The rows of the temporary file as an HDF5 data set, window by window.
  void convert() {
    const std::string h5 = path_ + ".h5.tmp";
    try {
      std::ifstream in(temporary_, std::ios::binary);
      in.seekg(kNpyHeader);
      Hdf5File out(h5, Hdf5File::Mode::create);
      out.create_dataset("/embeddings", {rows_, width_}, dtype_);
      for (int64_t first = 0; first < rows_; first += kWindowTexts) {
        const int64_t count = std::min<int64_t>(kWindowTexts, rows_ - first);
        Tensor window({count, width_}, dtype_);
        in.read(static_cast<char*>(window.view().raw()),
                static_cast<std::streamsize>(window.bytes()));
        if (!in) throw IoError("cannot read back '{}'", temporary_);
        out.write("/embeddings", {first, 0}, window);
      }
      out.close();
      std::filesystem::rename(h5, temporary_);
    } catch (...) {
      std::error_code ignored;
      std::filesystem::remove(h5, ignored);
      throw;
    }
  }

  std::string path_, temporary_;
  std::ofstream file_;
  int64_t rows_ = 0, width_ = 0;
  DType dtype_ = DType::f32;
};

// The next window of lines, packed as one string of length-prefixed texts; "" at the end.
std::string read_window(std::istream& in, const std::string& prefix) {
  std::string packed, line;
  for (size_t n = 0; n < kWindowTexts && std::getline(in, line); ++n) {
    if (!line.empty() && line.back() == '\r') line.pop_back();
    line.insert(0, prefix);
    const auto length = static_cast<uint32_t>(line.size());
    packed.append(reinterpret_cast<const char*>(&length), sizeof(length));
    packed += line;
  }
  return packed;
}

std::vector<std::string> unpack(const std::string& packed) {
  std::vector<std::string> texts;
  for (size_t at = 0; at < packed.size();) {
    uint32_t length = 0;
    std::memcpy(&length, packed.data() + at, sizeof(length));
    texts.push_back(packed.substr(at + sizeof(length), length));
    at += sizeof(length) + length;
  }
  return texts;
}

}  // namespace

EmbedResult embed_file(const EmbedOptions& options, TextEmbedder& embedder, Communicator& world) {
  Stopwatch watch;
  EmbedResult result;
  std::unique_ptr<EmbeddingFile> output;
  std::ifstream file;
  std::string error;
  const bool reader = world.rank() == 0;
  // What only rank 0 does, every rank learns the outcome of.
  const auto on_reader = [&](auto&& body) {
    if (reader) try {
        body();
      } catch (const std::exception& e) {
        error = e.what();
      }
    agree_or_throw<IoError>(world, error);
  };
  on_reader([&] {
    if (options.input != "-") {
      file.open(options.input, std::ios::binary);
      if (!file) throw IoError("cannot open '{}': {}", options.input, std::strerror(errno));
    }
    output = std::make_unique<EmbeddingFile>(options.output);
  });
  std::istream& in = options.input == "-" ? std::cin : file;
  while (true) {
    std::string packed;
    if (reader) packed = read_window(in, options.prefix);
    world.broadcast(packed, 0);
    if (packed.empty()) break;
    const std::vector<std::string> texts = unpack(packed);
    const Tensor rows = embedder.embed(texts, options.tower);
    on_reader([&] { output->append(rows); });
    result.texts += static_cast<int64_t>(texts.size());
    const double seconds = watch.elapsed();
    Log::progress(fmt::format("{} texts, {:.0f} texts/s", result.texts,
                              static_cast<double>(result.texts) / seconds));
  }
  Log::progress("");
  if (result.texts == 0) throw UsageError("'{}' holds no texts", options.input);
  on_reader([&] { output->finish(); });
  result.tokens = world.sum(embedder.tokens());
  result.truncated = world.sum(embedder.truncated());
  result.seconds = watch.elapsed();
  return result;
}

}  // namespace amur
