// A SentencePiece model file (sentencepiece_model.proto) as data: what its library does not show.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace amur {

struct SentencePieceModel {
  // Numbers of the file format.
  enum PieceType : uint64_t { kNormal = 1, kUnknown = 2, kControl = 3, kByte = 6 };
  static constexpr uint64_t kUnigram = 1;

  struct Piece {
    std::string text;
    float score = 0;
    uint64_t type = kNormal;
  };
  std::vector<Piece> pieces;
  uint64_t model_type = kUnigram;
  bool byte_fallback = false, space_is_suffix = false;
  std::string begin = "<s>", end = "</s>";
  std::string rule, charsmap;  // of the normaliser: name and compiled table
  bool dummy_prefix = true, one_space = true, escape_space = true;
};

// IoError, with `origin`, where the bytes are no such file.
SentencePieceModel read_sentencepiece_model(std::string_view bytes, const std::string& origin);

// A file that is read back as `model`, and that its library takes.
std::string write_sentencepiece_model(const SentencePieceModel& model);

// Rounds the scores of all pieces to multiples of 1/256, in place. SentencePiece sums them in
// single precision, so that segmentations of equal score ("00" "0" and "0" "00") are chosen between
// by rounding; sums of rounded ones are exact up to 65536, and any other program that takes the
// first of the best, in any precision, chooses the same.
void round_sentencepiece_scores(std::string& bytes);

}  // namespace amur
