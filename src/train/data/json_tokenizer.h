// Tokenizers from a Hugging Face `tokenizer.json`: WordPiece as BERT uses it, byte-level BPE
// (RoBERTa, ModernBERT) and Unigram (XLM-RoBERTa). They give the ids of Hugging Face's tokenizers
// (0.23) for every text that is valid UTF-8. Bytes that are not count as U+FFFD.
#pragma once

#include <memory>
#include <string>

#include "src/train/data/tokenizer.h"

namespace amur {

// Obeyed: the post-processors TemplateProcessing, BertProcessing, RobertaProcessing, ByteLevel,
// sequences of them or none, added tokens with all their flags, and
//   WordPiece  BertNormalizer or none, BertPreTokenizer, the decoder WordPiece or none;
//   BPE        NFC or none, ByteLevel with its regular expression, the decoder ByteLevel or none,
//              no dropout, prefixes or suffixes;
//   Unigram    Precompiled, Replace of a text or of " {2,}", sequences of them or none; Metaspace,
//              also behind WhitespaceSplit; the decoder Metaspace or none.
// `truncation` and `padding` are not: texts are cut at the length that encode is given, keeping the
// markers, and never padded. Everything else is refused by its name in the file: UsageError where
// Amur does not do it, IoError where the file is damaged. A text of which nothing is left, in a
// file without markers, is one unknown token.
std::unique_ptr<Tokenizer> make_json_tokenizer(std::string tokenizer_json,
                                               const std::string& origin);

}  // namespace amur
