// Files of tensors as Hugging Face keeps them: 8 bytes with the length n of the header
// (little-endian), n bytes of JSON
//   {"__metadata__": {text: text}, name: {"dtype": "F32", "shape": [..], "data_offsets": [b, e]}}
// (padded with blanks), then the elements, row-major and little-endian, without a gap
// (github.com/huggingface/safetensors, README "Format").
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "src/core/tensor.h"

namespace amur {

// A tensor as the header describes it.
struct SafetensorsInfo {
  std::string name;
  std::string dtype;           // "F32", "BF16", "I64", ...
  std::vector<int64_t> shape;  // empty: one element
  int64_t elements() const;
};
// Of one element; 0 for a dtype that the format does not have.
size_t safetensors_element_size(std::string_view dtype);

// A whole file in memory, best a mapping, which must outlive the object. The constructor trusts
// nothing: IoError, naming `origin` and the tensor, unless lengths, JSON, dtypes, shapes and
// offsets fit each other and the tensors fill the file without overlap or gap.
class Safetensors {
 public:
  struct Entry : SafetensorsInfo {
    std::string_view bytes;  // its elements
  };

  Safetensors(std::string_view file, std::string origin);

  const std::string& origin() const { return origin_; }
  const std::vector<Entry>& tensors() const { return tensors_; }  // as they lie in the file
  const Entry* find(std::string_view name) const;                 // null where there is none
  const std::map<std::string, std::string>& metadata() const { return metadata_; }

  // Elements first .. first + values.elements() - 1 of a tensor of F64, F32, F16 or BF16, to f32
  // (rounded to nearest from F64) or f64. IoError for another dtype.
  void read(const Entry& entry, int64_t first, TensorView values) const;

 private:
  std::string origin_;
  std::vector<Entry> tensors_;
  std::map<std::string, size_t, std::less<>> by_name_;
  std::map<std::string, std::string> metadata_;
};

// Where each tensor lies in a file of these tensors, and the bytes in front of the first: larger
// alignments first, then by name, as the reference implementation writes them, so that equal
// content is an equal file.
struct SafetensorsPlan {
  std::string head;                    // length and header
  std::vector<SafetensorsInfo> order;  // as they lie in the file
  std::vector<int64_t> starts;         // [order + 1] bytes from the start of the file
};
SafetensorsPlan plan_safetensors(std::vector<SafetensorsInfo> tensors,
                                 const std::map<std::string, std::string>& metadata);
// A whole file; `contents` beside `tensors`.
std::string safetensors_bytes(const std::vector<SafetensorsInfo>& tensors,
                              const std::vector<std::string_view>& contents,
                              const std::map<std::string, std::string>& metadata);

// Writes a file part by part, in any order; parts that are not written are 0. IoError on every
// failure, with the file's name.
class SafetensorsWriter {
 public:
  SafetensorsWriter(std::string path, std::vector<SafetensorsInfo> tensors,
                    const std::map<std::string, std::string>& metadata);
  ~SafetensorsWriter();
  SafetensorsWriter(const SafetensorsWriter&) = delete;
  SafetensorsWriter& operator=(const SafetensorsWriter&) = delete;

  // Elements from `first` on, as they are to stand in the file.
  void write(std::string_view tensor, int64_t first, std::span<const std::byte> elements);
  // Brings the file to the disk.
  void close();

 private:
  void put(const char* data, size_t bytes, int64_t at);

  std::string path_;
  SafetensorsPlan plan_;
  std::map<std::string, size_t, std::less<>> by_name_;
  int fd_ = -1;
};

}  // namespace amur
