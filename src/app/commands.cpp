#include "src/app/commands.h"

namespace amur {

const std::vector<Command>& commands() {
  static const std::vector<Command> all = {
      {"doctor", "what this program found: libraries, processor, ranks, hosts", run_doctor},
  };
  return all;
}

}  // namespace amur
