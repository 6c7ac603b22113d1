// Unicode's normal forms for the tokenizers' models.
#pragma once

#include <unicode/normalizer2.h>

namespace amur {

// NFC and NFD of Unicode 12.1, as Hugging Face's tokenizers 0.23 have them: characters that were
// added later are left alone. IoError where ICU's data is missing.
const icu::Normalizer2& composition();
const icu::Normalizer2& decomposition();

}  // namespace amur
