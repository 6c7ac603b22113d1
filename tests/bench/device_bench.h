// Commands of amur_bench_training that run on a CPU or a GPU, on random tokens or vectors, and
// print one JSON document. One rank.
#pragma once

#include <string>
#include <vector>

#include "comm/runtime.h"

namespace amur {

// step [--device cpu|cuda] [--model tiny|minilm|bert-base|bert-large] [--pairs N] [--length N]
//      [--longest N] [--steps N] [--precision fp32|bf16] [--floors yes|no] [--choices FILE]
//      [--set KEY=VALUE]...
//   Whole training steps: seconds of the median step, its phases, model FLOP/s as a share of the
//   rate of the large product, memory, bytes of training state. --longest above --length:
//   log-normal lengths. train.activation_budget is everything unless it is set.
//   On a GPU algorithms of products and engines of attention are those that a training would
//   choose by measuring; FILE has them for the next one. With runtime.tune=false products are the
//   library's first, attention is still chosen; that is runtime.attention's to say.
int bench_step(Runtime& runtime, std::vector<std::string> args);

// loss [--device cpu|cuda] [--rows N] [--width N] [--set KEY=VALUE]...
//   The loss stage alone: seconds, extra memory, 8 rows^2 width operations as a share of the rate
//   of the large product.
int bench_loss(Runtime& runtime, std::vector<std::string> args);

}  // namespace amur
