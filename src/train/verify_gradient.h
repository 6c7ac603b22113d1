// The gradient certificate: the trainer's gradient of one global batch against an independent
// reference.
//
// The reference runs the encoder once over the whole batch in double precision and computes the
// loss from the materialised matrix of all scores in plain loops: it shares no loss, tiling,
// caching, chunking or collective code with the trainer. The reference itself is checked by central
// differences in random directions of every tensor. What is certified in double rounds nothing;
// with loss.precision bf16 the configured precision is held against a second reference, in double
// too, that rounds the embeddings as the trainer does.
#pragma once

#include <string>
#include <vector>

#include "comm/process_grid.h"
#include "src/train/data/data.h"
#include "src/train/two_pass.h"

namespace amur {

// A mistake seen in real trainers, made on purpose; the certificate must then fail.
enum class GradientFault {
  none,
  naive_accumulation,     // each chunk of pairs has its own loss; the gradients are averaged
  mean_of_local_means,    // each rank's rows are averaged, then the ranks: wrong for uneven ranks
  temperature_in_replay,  // the temperature counts in the loss stage and again in the replay
};

struct TensorError {
  std::string name;
  double relative_error = 0;
};

// Of one precision.
struct GradientCheck {
  Precision precision = Precision::fp64;
  double bound = 0;
  double loss = 0;
  double max_relative_error = 0;
  std::vector<TensorError> tensors;
  bool pass = false;
};

struct GradientCertificate {
  int64_t samples = 0, ranks = 0, chunks = 0;
  double reference_loss = 0;
  // |central difference - <g, v>| / |g| over tensors and directions, and what it must stay under.
  double max_direction_error = 0;
  double direction_bound = 1e-5;
  std::vector<GradientCheck> checks;  // fp64, then the configured precision if that is another
  bool pass = false;
};

// The certificate of the first global batch of `data`, with at most `samples` samples, at freshly
// initialised weights. The relative error of a tensor is |g - g*| / max(|g*|, 1e-3 sqrt(n) R), R
// the root mean square over all gradients; of temperature and bias, against the sum of the
// magnitudes of their terms. What is certified computes on `device`, the reference on the CPU.
// Collective.
GradientCertificate verify_gradient(const Config& config, const Dataset& data,
                                    const Tokenizer& tokenizer, int64_t samples,
                                    GradientFault fault, ProcessGrid& grid, Runtime& runtime,
                                    Device device = Device::cpu());

std::string to_json(const GradientCertificate& certificate);
std::string to_table(const GradientCertificate& certificate);

}  // namespace amur
