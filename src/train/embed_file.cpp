#include "src/train/embed_file.h"

#include "src/core/log.h"
#include "src/train/agreement.h"
#include "src/train/data/mapped_file.h"
#include "src/train/embedding_output.h"
#include "src/train/stopwatch.h"
#include "src/train/text_windows.h"

namespace amur {
namespace {

constexpr double kPatience = 5;  // seconds between signs of life while the input pauses

// Reads what an interrupted job has done, to where it stood.
void skip_texts(LineReader& input, const EmbedRecord& done, const EmbedOptions& options) {
  uint64_t hash = 0;
  std::string line;
  int64_t texts = 0;
  for (; texts < done.texts && input.next(line); ++texts) hash = hash_text(hash, line);
  if (texts < done.texts || hash != done.input)
    throw UsageError(
        "the first {} texts of '{}' are not those that the interrupted job has embedded: give "
        "these again, or start anew with --resume never",
        done.texts, options.input);
}

}  // namespace

EmbedResult embed_file(const EmbedOptions& options, TextEmbedder& embedder, Communicator& world) {
  Stopwatch watch;
  EmbedRecord done;  // on rank 0
  done.model = embedder.fingerprint();
  done.prefix = options.prefix;
  done.tower = options.tower;
  std::unique_ptr<LineReader> input;
  std::unique_ptr<EmbeddingOutput> output;
  read_on_first_rank(world, [&] {
    input = std::make_unique<LineReader>(options.input);
    output = std::make_unique<EmbeddingOutput>(options.output, done, options.resume);
    done = output->record();
    skip_texts(*input, done, options);
  });
  EmbedResult result;
  result.resumed = world.max(done.texts);
  if (result.resumed > 0)
    Log::info("going on after {} texts of an interrupted job", result.resumed);

  const bool live = options.input == "-" && options.output == "-";
  bool given = false;  // since the last pause
  TextStream stream;
  stream.next = [&](std::string& text) {
    if (live && given && !input->ready(0)) {
      given = false;
      return NextText::pause;
    }
    while (!input->ready(kPatience)) embedder.advance();
    if (!input->next(text)) return NextText::end;
    given = true;
    done.input = hash_text(done.input, text);
    text.insert(0, options.prefix);
    return NextText::text;
  };
  stream.share_read = [&] { return input->share_read(); };

  const EmbedRecord before = done;
  result.texts = result.resumed;
  result.texts += embed_windows(stream, options.tower, embedder, world, [&](const TextWindow& w) {
    const int64_t tokens = world.sum(embedder.tokens());
    const int64_t truncated = world.sum(embedder.truncated());
    done.texts += std::ssize(w.texts);
    done.tokens = before.tokens + tokens;
    done.truncated = before.truncated + truncated;
    read_on_first_rank(world, [&] { output->append(w.texts, w.rows, done); });
  });
  if (result.texts == 0) throw UsageError("'{}' holds no texts", options.input);
  on_first_rank(world, [&] { output->finish(); });
  result.tokens = done.tokens;
  result.truncated = done.truncated;
  result.seconds = watch.elapsed();
  return result;
}

}  // namespace amur
