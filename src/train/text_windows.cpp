#include "src/train/text_windows.h"

#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "kernels/elementwise.h"
#include "src/core/log.h"
#include "src/train/agreement.h"
#include "src/train/stopwatch.h"

namespace amur {
namespace {

constexpr double kSecondsBetweenLines = 10;

// The texts of a window as one string: how it ended, then every text behind its length.
void append_text(std::string& packed, std::string_view text) {
  const auto length = static_cast<uint64_t>(text.size());
  packed.append(reinterpret_cast<const char*>(&length), sizeof(length));
  packed += text;
}

std::vector<std::string> unpack(const std::string& packed) {
  std::vector<std::string> texts;
  for (size_t at = 1; at < packed.size();) {
    uint64_t length = 0;
    std::memcpy(&length, packed.data() + at, sizeof(length));
    texts.push_back(packed.substr(at + sizeof(length), length));
    at += sizeof(length) + length;
  }
  return texts;
}

std::string read_window(const TextStream& stream) {
  std::string packed(1, static_cast<char>(NextText::text)), text;
  int64_t texts = 0, bytes = 0;
  while (texts % stream.group != 0 || (texts < kWindowTexts && bytes < kWindowBytes)) {
    const NextText next = stream.next(text);
    packed[0] = static_cast<char>(next);
    if (next != NextText::text) break;
    append_text(packed, text);
    ++texts;
    bytes += static_cast<int64_t>(text.size());
  }
  return packed;
}

class Progress {
 public:
  explicit Progress(double share) : first_share_(share) {}
  void at(int64_t texts, double share) {
    const double seconds = whole_.elapsed(), rate = static_cast<double>(texts) / seconds;
    std::string line = fmt::format("{} texts, {:.0f} texts/s", texts, rate);
    if (share > first_share_)
      line += fmt::format(", {:.0f} %, {:.0f} s left", 100 * share,
                          seconds * (1 - share) / (share - first_share_));
    Log::progress(line);
    if (Log::on_terminal() || since_line_.elapsed() < kSecondsBetweenLines) return;
    since_line_.lap();
    Log::info("{}", line);
  }
  ~Progress() { Log::progress(""); }

 private:
  double first_share_;
  Stopwatch whole_, since_line_;
};

}  // namespace

TextStream numbered_texts(int64_t count, std::function<std::string(int64_t)> text) {
  TextStream stream;
  auto at = std::make_shared<int64_t>(0);
  stream.next = [=, text = std::move(text)](std::string& to) {
    if (*at == count) return NextText::end;
    to = text((*at)++);
    return NextText::text;
  };
  stream.share_read = [=] { return static_cast<double>(*at) / static_cast<double>(count); };
  return stream;
}

int64_t embed_windows(const TextStream& stream, int tower, TextEmbedder& embedder,
                      Communicator& world, const std::function<void(const TextWindow&)>& visit) {
  Progress progress(world.rank() == 0 ? stream.share_read() : 0);
  int64_t done = 0;
  for (NextText ended = NextText::text; ended != NextText::end;) {
    std::string packed;
    read_on_first_rank(world, [&] { packed = read_window(stream); });
    world.broadcast(packed, 0);
    ended = static_cast<NextText>(packed[0]);
    const std::vector<std::string> texts = unpack(packed);
    packed = {};
    if (texts.empty()) continue;
    const Tensor rows = embedder.embed(texts, tower);
    if (!all_finite(rows)) {
      int64_t bad = 0;
      while (all_finite(rows.view().slice(bad, 1))) ++bad;
      throw NumericError(
          "the embedding of text {} is not finite: the model has diverged, or is damaged",
          done + bad + 1);
    }
    visit({done, texts, rows});
    done += static_cast<int64_t>(texts.size());
    if (world.rank() == 0) progress.at(done, stream.share_read());
  }
  return done;
}

Tensor embed_all(const TextStream& stream, int64_t count, int tower, TextEmbedder& embedder,
                 Communicator& world) {
  Tensor all;
  embed_windows(stream, tower, embedder, world, [&](const TextWindow& window) {
    if (!all.defined()) all = Tensor({count, window.rows.columns()}, window.rows.dtype());
    copy(all.view().slice(window.first, window.rows.rows()), window.rows);
  });
  return all;
}

}  // namespace amur
