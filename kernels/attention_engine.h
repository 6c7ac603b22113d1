// Who computes an attention on a GPU: the kernel of this project, which takes everything, or
// cuDNN's, which takes texts of bf16 that are seen as a whole and without dropout. Both write the
// same statistics, so one's backward can follow the other's forward.
#pragma once

#include <algorithm>
#include <compare>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <utility>

#include "src/core/device.h"

namespace amur {

enum class AttentionEngine { own, cudnn };
enum class AttentionDirection { forward, backward };
const char* name_of(AttentionEngine engine);
const char* name_of(AttentionDirection direction);

// Sizes that are treated alike: `least` by 1, 1.5, 2, 3, 4, 6, ..., whichever holds `size` first.
constexpr int64_t size_bucket(int64_t size, int64_t least) {
  int64_t bucket = least;
  while (bucket < size) bucket *= 2;
  return bucket > least && bucket / 4 * 3 >= size ? bucket / 4 * 3 : bucket;
}
// Of the tokens of the longest text, and of the number of texts.
constexpr int64_t length_bucket(int64_t longest) {
  return size_bucket(longest, 64);
}
constexpr int64_t sequences_bucket(int64_t sequences) {
  return size_bucket(sequences, 8);
}

// Attentions for which one engine is chosen.
struct AttentionKind {
  AttentionDirection direction = AttentionDirection::forward;
  int64_t heads = 0, head_size = 0;
  int64_t longest = 0;  // length_bucket of the texts

  auto operator<=>(const AttentionKind&) const = default;
  std::string text() const;  // "forward, 12 heads of 64, texts of up to 128 tokens"
};

struct AttentionEngines {
  AttentionEngine otherwise = AttentionEngine::own;
  std::map<AttentionKind, AttentionEngine> chosen;

  AttentionEngine of(const AttentionKind& kind) const {
    const auto found = chosen.find(kind);
    return found == chosen.end() ? otherwise : found->second;
  }
};

// From now on, in this process, where `device` is a GPU; returns those before. At first it is our
// own kernel everywhere. What cuDNN has no plan for is computed by our own.
AttentionEngines use_attention_engines(const AttentionEngines& engines, Device device);

// "cuDNN 9.19.0", or empty where it cannot be used.
std::string other_attention_library(Device device);

// Seconds of one call over `tokens` tokens in texts of `kind.longest`, by each engine; cuDNN's is
// empty where its numbers are not those of our own kernel, or where it has no plan and nothing is
// timed: `problem` says which. Waits for the GPU; leaves the engines in use as they are.
struct AttentionTimes {
  double own = 0;
  std::optional<double> cudnn;
  std::string problem;

  AttentionEngine faster() const {
    return cudnn && *cudnn < own ? AttentionEngine::cudnn : AttentionEngine::own;
  }
};
AttentionTimes time_attention_engines(const AttentionKind& kind, int64_t tokens, Device device);

}  // namespace amur
