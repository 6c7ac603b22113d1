// `amur doctor --cluster`: what a run on these ranks would meet. Collective.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "comm/runtime.h"

namespace amur {

struct ClusterReport {
  nlohmann::ordered_json json;        // all of it, "problems" and "warnings" among it
  std::string text;                   // the same for people
  std::vector<std::string> problems;  // each with what to do; a run would fail
  int exit_code = 0;                  // of the first problem
};

// `folder` is where runs are to be written; it is made if it is not there. Collectives are timed
// inside a machine, between machines (one rank of each) and over all ranks. network.link holds the
// two constants of the model of docs/scaling.md: seconds a message takes between two machines, and
// bytes a second of a machine's link while all machines exchange. It is null on one machine, and
// where machines have different numbers of ranks.
ClusterReport examine_cluster(Runtime& runtime, const std::string& folder);

}  // namespace amur
