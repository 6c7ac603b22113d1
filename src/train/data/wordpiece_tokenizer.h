// WordPiece as BERT uses it, from a Hugging Face `tokenizer.json`: the ids of Hugging Face's
// tokenizers (0.23) for every text that is valid UTF-8. Bytes that are not count as U+FFFD, which
// BERT's cleaning removes.
#pragma once

#include "src/train/data/tokenizer.h"

namespace amur {

// Obeyed: the normalizer BertNormalizer or none, BertPreTokenizer, the model WordPiece, the
// post-processors TemplateProcessing, BertProcessing or none, the decoder WordPiece or none, and
// added tokens with all their flags. `truncation` and `padding` are not: texts are cut at the
// length that encode is given, keeping the markers, and never padded. Everything else is refused by
// its name in the file: UsageError where Amur does not do it, IoError where the file is damaged.
// A text of which nothing is left, in a file without markers, is one unknown token.
std::unique_ptr<Tokenizer> make_wordpiece_tokenizer(std::string tokenizer_json,
                                                    const std::string& origin);

}  // namespace amur
