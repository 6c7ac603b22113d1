#include "src/train/data/sentencepiece_model.h"

#include <bit>
#include <cmath>
#include <cstring>

#include "src/train/data/protobuf_reader.h"

namespace amur {
namespace {

constexpr float kScoreSteps = 256;

SentencePieceModel::Piece read_piece(ProtobufReader reader) {
  SentencePieceModel::Piece piece;
  while (const auto field = reader.next()) {
    if (field->number == 1) piece.text = field->bytes();
    if (field->number == 2) piece.score = std::bit_cast<float>(field->fixed32());
    if (field->number == 3) piece.type = field->varint();
  }
  return piece;
}

void read_training(ProtobufReader reader, SentencePieceModel& model) {
  while (const auto field = reader.next()) {
    if (field->number == 3) model.model_type = field->varint();
    if (field->number == 24) model.space_is_suffix = field->varint() != 0;
    if (field->number == 35) model.byte_fallback = field->varint() != 0;
    if (field->number == 46) model.begin = field->bytes();
    if (field->number == 47) model.end = field->bytes();
  }
}

void read_normalizer(ProtobufReader reader, SentencePieceModel& model) {
  while (const auto field = reader.next()) {
    if (field->number == 1) model.rule = field->bytes();
    if (field->number == 2) model.charsmap = field->bytes();
    if (field->number == 3) model.dummy_prefix = field->varint() != 0;
    if (field->number == 4) model.one_space = field->varint() != 0;
    if (field->number == 5) model.escape_space = field->varint() != 0;
  }
}

// Fields of a message, as protobuf_reader.h takes them apart.
class MessageWriter {
 public:
  void varint(uint64_t number, uint64_t value) {
    put(number << 3);
    put(value);
  }
  void bytes(uint64_t number, std::string_view value) {
    put(number << 3 | 2);
    put(value.size());
    out_ += value;
  }
  void fixed32(uint64_t number, uint32_t value) {
    put(number << 3 | 5);
    for (int shift = 0; shift < 32; shift += 8) out_.push_back(static_cast<char>(value >> shift));
  }
  const std::string& text() const { return out_; }

 private:
  void put(uint64_t value) {
    for (; value >= 0x80; value >>= 7) out_.push_back(static_cast<char>(value | 0x80));
    out_.push_back(static_cast<char>(value));
  }
  std::string out_;
};

}  // namespace

SentencePieceModel read_sentencepiece_model(std::string_view bytes, const std::string& origin) {
  SentencePieceModel model;
  ProtobufReader reader(bytes, origin);
  while (const auto field = reader.next()) {
    if (field->number == 1) model.pieces.push_back(read_piece(field->message()));
    if (field->number == 2) read_training(field->message(), model);
    if (field->number == 3) read_normalizer(field->message(), model);
  }
  return model;
}

std::string write_sentencepiece_model(const SentencePieceModel& model) {
  MessageWriter file, training, normalizer;
  for (const SentencePieceModel::Piece& piece : model.pieces) {
    MessageWriter one;
    one.bytes(1, piece.text);
    one.fixed32(2, std::bit_cast<uint32_t>(piece.score));
    one.varint(3, piece.type);
    file.bytes(1, one.text());
  }
  training.varint(3, model.model_type);
  training.varint(24, model.space_is_suffix);
  training.varint(35, model.byte_fallback);
  training.bytes(46, model.begin);
  training.bytes(47, model.end);
  normalizer.bytes(1, model.rule);
  normalizer.bytes(2, model.charsmap);
  normalizer.varint(3, model.dummy_prefix);
  normalizer.varint(4, model.one_space);
  normalizer.varint(5, model.escape_space);
  file.bytes(2, training.text());
  file.bytes(3, normalizer.text());
  return file.text();
}

void round_sentencepiece_scores(std::string& bytes) {
  ProtobufReader reader(bytes, "the trained vocabulary");
  while (const auto field = reader.next()) {
    if (field->number != 1) continue;
    ProtobufReader piece = field->message();
    while (const auto part = piece.next()) {
      if (part->number != 2) continue;
      const float score =
          std::round(std::bit_cast<float>(part->fixed32()) * kScoreSteps) / kScoreSteps;
      // Little-endian on the wire and here; the field ends where the reader stands.
      char* end = bytes.data() + (piece.position() - bytes.data());
      std::memcpy(end - sizeof(score), &score, sizeof(score));
    }
  }
}

}  // namespace amur
