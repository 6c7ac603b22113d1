// The classes of transformers and sentence-transformers that an encoder of Amur can be, and their
// config.json. An option that Amur's encoder, or the class, cannot express is refused by its name.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "src/model/model_config.h"

namespace amur {

//   bert             post-norm, learned positions (transformers BertModel)
//   distilbert       the same without token types (DistilBertModel)
//   roberta, xlm_roberta  as bert, but positions begin behind the number of the padding token
//                    (RobertaModel, XLMRobertaModel)
//   modernbert       pre-norm, rotary positions, gated feed-forward, local layers between global
//                    ones (ModernBertModel)
//   static_embedding 0 layers (sentence-transformers StaticEmbedding); has no config.json
enum class HuggingFaceClass : uint8_t {
  bert,
  distilbert,
  roberta,
  xlm_roberta,
  modernbert,
  static_embedding
};
const char* name_of(HuggingFaceClass c);  // "BERT"

struct HuggingFaceEncoder {
  HuggingFaceClass kind = HuggingFaceClass::bert;
  // With the vocabulary set; max_length is the longest that the class was made for.
  ModelConfig model;
  int64_t table_rows = 0;   // of the token table: at least model.vocab
  int64_t token_types = 1;  // rows of BERT's table of token types, of which Amur knows the first
  // Rows of the table of positions in front of that of a text's first token, which no text uses.
  int64_t first_position = 0;
};

// Tokens at which a static embedding model cuts texts where its files name no number.
inline constexpr int64_t kMaxStaticLength = int64_t{1} << 20;

// From a config.json. IoError where it is none, UsageError naming the option and its value where
// it asks for what Amur does not compute. `origin` is the file's name for messages.
HuggingFaceEncoder read_encoder(std::string_view json, const std::string& origin);

// The class that an encoder can be handed over as, as it was imported (`was`) if that is one of
// them; UsageError naming the options in the way. The scale of attention and the eps of norms are
// not looked at.
HuggingFaceEncoder encoder_class(const ModelConfig& model, std::optional<HuggingFaceClass> was);

// "the BERT class", or why it is none: for people.
std::string interchange_class(const ModelConfig& model);

// The numbers of special tokens; -1: there is none.
struct SpecialTokens {
  int64_t pad = -1, begin = -1, end = -1;
};
// config.json of the encoder: `base` (the one that was imported, or "") with what is known here
// put in its place.
std::string encoder_json(const HuggingFaceEncoder& encoder, const SpecialTokens& tokens,
                         const std::string& base);

}  // namespace amur
