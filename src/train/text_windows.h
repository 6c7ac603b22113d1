// Any number of texts through the encoder, in memory of one window.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>

#include "src/train/text_embedder.h"

namespace amur {

// A window ends with this many texts, or once its texts have this many bytes.
inline constexpr int64_t kWindowTexts = 16384;
inline constexpr int64_t kWindowBytes = int64_t{64} << 20;

enum class NextText : uint8_t {
  text,
  pause,  // the window ends here: more may come, but not now
  end,
};

// Texts as rank 0 has them; the other ranks ask nothing.
struct TextStream {
  // UsageError and IoError reach every rank.
  std::function<NextText(std::string&)> next;
  // Of all there is, how much was read, 0 to 1; not a number where nobody knows. For the progress.
  std::function<double()> share_read;
  // A window holds a multiple of so many texts (two sides of a pair).
  int64_t group = 1;
};
// Texts by number: text(i), 0 <= i < count, on rank 0.
TextStream numbered_texts(int64_t count, std::function<std::string(int64_t)> text);

struct TextWindow {
  int64_t first = 0;                   // texts before this window
  std::span<const std::string> texts;  // on every rank
  ConstTensorView rows;                // [texts, e], their embeddings, on every rank
};

// Calls visit(window) on every rank, in order. Where the windows are cut depends on the texts alone
// (and on pauses), so that the bits of a row do not depend on the number of ranks. Rate and time
// left are shown, in a log a line every ten seconds. NumericError for an embedding that is not
// finite. Returns the number of texts. Collective; `visit` may be, too, and where it throws it does
// so on every rank.
int64_t embed_windows(const TextStream& stream, int tower, TextEmbedder& embedder,
                      Communicator& world, const std::function<void(const TextWindow&)>& visit);

// Of texts that fit into memory as embeddings, all rows: [count, e] on every rank.
Tensor embed_all(const TextStream& stream, int64_t count, int tower, TextEmbedder& embedder,
                 Communicator& world);

}  // namespace amur
