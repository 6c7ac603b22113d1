#pragma once

namespace amur::test {

// A program under a sanitizer is an order of magnitude slower, and where tests go through many
// combinations of options it sees no other code in most of them.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool kSanitized = true;
#else
constexpr bool kSanitized = false;
#endif

}  // namespace amur::test
