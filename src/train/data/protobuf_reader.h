// Fields of a Protocol Buffers message as they stand on the wire
// (https://protobuf.dev/programming-guides/encoding): enough to read a model of another program
// without its generated classes.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "src/core/error.h"

namespace amur {

class ProtobufReader {
 public:
  // The bytes must outlive what is read of them; `origin` names them in an IoError.
  ProtobufReader(std::string_view bytes, std::string origin)
      : bytes_(bytes), origin_(std::move(origin)) {}

  class Field {
   public:
    uint64_t number = 0;

    // The value as the type that the caller expects; IoError where the wire type is another.
    uint64_t varint() const { return expect(kVarint).value_; }
    uint32_t fixed32() const { return static_cast<uint32_t>(expect(kFixed32).value_); }
    std::string_view bytes() const { return expect(kBytes).bytes_; }
    ProtobufReader message() const { return {bytes(), *origin_}; }

   private:
    friend class ProtobufReader;
    const Field& expect(uint64_t wire_type) const {
      if (wire_type_ != wire_type)
        throw IoError("{} is damaged: field {} has the wire type {}", *origin_, number, wire_type_);
      return *this;
    }

    uint64_t wire_type_ = 0, value_ = 0;
    std::string_view bytes_;
    const std::string* origin_ = nullptr;
  };

  // Of the next field: behind the last byte of the one just read.
  const char* position() const { return bytes_.data(); }
  // Nothing at the end. The reader must outlive the field.
  std::optional<Field> next() {
    if (bytes_.empty()) return std::nullopt;
    Field field;
    field.origin_ = &origin_;
    const uint64_t key = varint();
    field.number = key >> 3;
    field.wire_type_ = key & 7;
    switch (field.wire_type_) {
      case kVarint:
        field.value_ = varint();
        break;
      case kFixed64:
        field.value_ = fixed(8);
        break;
      case kBytes:
        field.bytes_ = take(varint());
        break;
      case kFixed32:
        field.value_ = fixed(4);
        break;
      default:
        throw IoError("{} is damaged: it has a field of wire type {}", origin_, field.wire_type_);
    }
    return field;
  }

 private:
  static constexpr uint64_t kVarint = 0, kFixed64 = 1, kBytes = 2, kFixed32 = 5;

  std::string_view take(uint64_t size) {
    if (size > bytes_.size()) throw IoError("{} is cut off", origin_);
    const std::string_view taken = bytes_.substr(0, size);
    bytes_.remove_prefix(size);
    return taken;
  }
  uint64_t varint() {
    uint64_t value = 0;
    for (int shift = 0; shift < 64; shift += 7) {
      const auto byte = static_cast<unsigned char>(take(1)[0]);
      value |= uint64_t{byte & 0x7fu} << shift;
      if (byte < 0x80) return value;
    }
    throw IoError("{} is damaged: a number does not end", origin_);
  }
  uint64_t fixed(int bytes) {
    uint64_t value = 0;
    const std::string_view taken = take(static_cast<uint64_t>(bytes));
    for (int i = 0; i < bytes; ++i)
      value |= uint64_t{static_cast<unsigned char>(taken[static_cast<size_t>(i)])} << (8 * i);
    return value;
  }

  std::string_view bytes_;
  std::string origin_;
};

}  // namespace amur
