// HDF5 files: the few calls that Amur needs, with errors as IoError. The only place that knows
// hdf5.h.
//
// What is written is the same for equal content: no time stamps, and a pinned format (that of HDF5
// 1.10) whose metadata carry checksums. The library is not thread-safe: calls of one process take
// turns. One that waits for other ranks holds up all others of its process, so two threads must not
// take part in collective calls at the same time.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "src/core/tensor.h"

namespace amur {

using AttributeValue =
    std::variant<int64_t, uint64_t, double, std::string, std::vector<std::string>>;

// What a data set holds: numbers of a dtype, or fixed-length strings of `string_length` bytes.
struct DatasetInfo {
  Shape shape;
  DType dtype = DType::u8;
  size_t string_length = 0;  // 0: numbers
  size_t stored_bytes = 0;   // in the file; less than the logical size where compressed
};

// How a file is written; its content does not depend on it.
struct FileOptions {
  int compression = 0;                     // deflate level; 0: contiguous data sets
  int64_t chunk_bytes = int64_t{1} << 20;  // about so many in a chunk of a compressed one
  std::string mpi_io_hints{};              // "key=value, key=value"
};

class Hdf5File {
 public:
  enum class Mode : uint8_t { create, write, read };

  // `mpi_comm` (a pointer to an MPI_Comm, or null for one process): opens through MPI-IO; the
  // constructor, `write`, `flush` and `close` are then collective. `create` replaces a file of the
  // same name.
  Hdf5File(const std::string& path, Mode mode, const void* mpi_comm = nullptr,
           FileOptions options = {});
  // Closes, without a word about errors: call `close` to hear of them.
  ~Hdf5File();
  Hdf5File(const Hdf5File&) = delete;
  Hdf5File& operator=(const Hdf5File&) = delete;

  void flush();
  void close();
  const std::string& path() const { return path_; }

  // Objects are named by absolute paths, "/" is the root.
  bool exists(const std::string& object) const;
  bool is_group(const std::string& object) const;
  std::vector<std::string> children(const std::string& group) const;  // in alphabetical order

  // Parents are made as needed.
  void create_group(const std::string& group);
  // Compressed as the file's options say, or not at all. Space is reserved, nothing is written.
  void create_dataset(const std::string& dataset, const Shape& shape, DType dtype,
                      bool compressed = false);
  DatasetInfo info(const std::string& dataset) const;

  // A block of a data set (f32, bf16, f64, i64 or u8 as in the file): `first` and `view.shape()`
  // are in its axes. `write` through MPI-IO is one collective transfer; an empty view takes part
  // with nothing.
  void write(const std::string& dataset, const Shape& first, ConstTensorView view);
  void read(const std::string& dataset, const Shape& first, TensorView view) const;

  // Text, and lists of text, as fixed-length strings padded with zero bytes. A list that is there
  // is replaced by one of as many texts, none of which is longer than its longest.
  void write_text(const std::string& dataset, const std::string& text);
  void write_texts(const std::string& dataset, const std::vector<std::string>& texts);
  // The padded bytes as they are stored: [strings * string_length].
  std::vector<std::byte> read_text_bytes(const std::string& dataset) const;
  std::vector<std::string> read_texts(const std::string& dataset) const;

  // Sets or replaces; a replacement has the type of the old value.
  void set_attribute(const std::string& object, const std::string& name,
                     const AttributeValue& value);
  bool has_attribute(const std::string& object, const std::string& name) const;
  AttributeValue attribute(const std::string& object, const std::string& name) const;
  // In alphabetical order.
  std::vector<std::pair<std::string, AttributeValue>> attributes(const std::string& object) const;

  // Of a type that the file must have; IoError otherwise.
  template <class T>
  T attribute_as(const std::string& object, const std::string& name) const {
    AttributeValue value = attribute(object, name);
    if (T* p = std::get_if<T>(&value)) return std::move(*p);
    fail_attribute_type(object, name);
  }

 private:
  [[noreturn]] void fail(const std::string& what) const;
  [[noreturn]] void fail_attribute_type(const std::string& object, const std::string& name) const;
  int64_t open_object(const std::string& object) const;
  void create_parents(const std::string& object);

  std::string path_;
  FileOptions options_;
  int64_t file_ = -1;  // hid_t
  bool parallel_ = false;
};

// Version of the library that runs, and whether it can write in parallel: "HDF5 1.10.8, parallel".
std::string hdf5_version_text();

}  // namespace amur
