#include "src/app/commands.h"

namespace amur {

const std::vector<Command>& commands() {
  static const std::vector<Command> all = {
      {"train", "train an encoder as a configuration says, or go on where it stopped", run_train},
      {"eval", "retrieval, similarity and classification with a checkpoint", run_eval},
      {"embed", "embeddings of the lines of a file", run_embed},
      {"inspect", "what a checkpoint holds, and whether it is sound", run_inspect},
      {"widen", "a larger model that computes the same embeddings", run_widen},
      {"import", "a checkpoint from a Hugging Face folder", run_import},
      {"export", "a Hugging Face folder from a checkpoint", run_export},
      {"compare", "whether two checkpoints compute the same embeddings", run_compare},
      {"verify-grad", "certify the gradients against an independent reference", run_verify_grad},
      {"doctor", "what this program found: libraries, processor, ranks, hosts", run_doctor},
  };
  return all;
}

}  // namespace amur
