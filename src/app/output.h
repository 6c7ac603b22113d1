#pragma once

#include <string>

namespace amur {

// Writes all of `text` to standard output; throws IoError where that fails. Gives exit code 0.
int print_text(const std::string& text);

}  // namespace amur
