#pragma once

#include <string>

#include "src/train/config/config.h"

namespace amur::test {

// What recipes start from that name no sizes of their own: all-MiniLM-L6-v2.
inline Config minilm(const std::string&) {
  Config c;
  c.model.layers = 6;
  c.model.hidden = 384;
  c.model.heads = 12;
  c.model.ffn = 1536;
  c.model.max_length = 512;
  c.data.vocab_size = 30522;
  return c;
}

}  // namespace amur::test
