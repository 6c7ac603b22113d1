// Growing during a run: `train.growth`.
//
// The run's checkpoint at the step is grown as `amur widen` would do it, under its own name, and
// the run goes on from that file as a resumed one does. A run that is killed before, during or
// after it therefore goes on in the same way.
#pragma once

#include <string>

#include "src/train/checkpoint/checkpoint.h"
#include "src/train/config/config.h"
#include "src/train/data/tokenizer.h"

namespace amur {

class Runtime;

// The configuration of a run that goes on from the checkpoint `saved`, a file called `path`: that
// of its beginning, with the entries of `train.growth` applied that the checkpoint has behind it,
// and taken off the list. UsageError where the checkpoint has grown otherwise than the list says, or
// an entry to come is impossible.
Config config_behind_growth(const Config& config, const CheckpointInfo& saved,
                            const std::string& path);

// Whether the next entry is due when `step` steps are done.
bool growth_is_due(const Config& config, int64_t step);

// Does the next entry: `input`, the checkpoint of this step, becomes `output`, which may be the
// same file. Returns the configuration of what follows. NumericError where the embeddings are not
// the same; then nothing was written. Collective.
Config grow_run(const Config& config, const std::string& input, const std::string& output,
                const Tokenizer& tokenizer, ProcessGrid& grid, Runtime& runtime);

// What the lineage has of a growth behind the very step of the checkpoint, for metrics.jsonl: a
// JSON object, or "".
std::string growth_record(const CheckpointInfo& saved);

}  // namespace amur
