// Words and their character n-grams, hashed into a fixed number of ids (Bojanowski et al.,
// fastText, arXiv 1607.04606): nothing to train, no unknown word, and compounds share the ids of
// their parts. Made for static embedding models (0 layers): a text becomes some 20 ids a word.
#pragma once

#include "src/train/data/tokenizer.h"

namespace amur {

// Text is normalised by NFKC with case folding and split into runs of letters, marks and digits;
// `<word>` gives one id for itself and one for each of its n-grams of `shortest` to `longest`
// characters, with < and > counted. A text without a word gives the one id 0.
std::unique_ptr<Tokenizer> make_ngram_tokenizer(int64_t ids, int shortest = 3, int longest = 5);
// From what `serialised` gave; null where the bytes are not of this kind.
std::unique_ptr<Tokenizer> read_ngram_tokenizer(const std::string& bytes);

}  // namespace amur
