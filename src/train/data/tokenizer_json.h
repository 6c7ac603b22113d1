// Hugging Face `tokenizer.json` texts for vocabularies that come without one.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace amur {

// Of a BERT folder that has only `vocab.txt` (one token a line) and `tokenizer_config.json` (empty:
// none): what transformers makes of them. Obeyed: do_lower_case (true), strip_accents (null),
// tokenize_chinese_chars (true), unk_token, sep_token, pad_token, cls_token, mask_token (texts, or
// objects with flags), and added_tokens_decoder. UsageError for the tokenizer_class of another
// family, IoError for damaged files; `origin` names the folder in them.
std::string wordpiece_tokenizer_json(std::string_view vocab_txt,
                                     std::string_view tokenizer_config_json,
                                     const std::string& origin);

// Of an XLM-RoBERTa folder that has only `sentencepiece.bpe.model`, whose bytes these are: what
// transformers makes of it, with fairseq's own numbers for the special tokens. UsageError where the
// model is not unigram, IoError where it is damaged.
std::string xlm_roberta_tokenizer_json(std::string_view model, const std::string& origin);

// Of a SentencePiece unigram model, whose bytes these are: Hugging Face's tokenizers give the ids
// that Amur gives, begin and end markers included, but for texts that spell a marker (`<s>`), which
// it takes for the marker, and rare sequences of combining marks (docs/tokenizers.md). UsageError
// where the model is not unigram or has options or pieces without a counterpart, IoError where it
// is damaged.
std::string sentencepiece_tokenizer_json(std::string_view model, const std::string& origin);

// The same for sentence-transformers' StaticEmbedding, which asks its tokenizer for no markers and
// averages what it gets, whereas Amur averages the markers too: they become a part of every text
// that is not empty. Texts are cut at `max_length` tokens.
std::string static_tokenizer_json(std::string_view model, int64_t max_length,
                                  const std::string& origin);

// A model file of which one of both functions writes these very bytes; nothing where there is none.
std::optional<std::string> sentencepiece_model_of(std::string_view tokenizer_json,
                                                  const std::string& origin);

}  // namespace amur
