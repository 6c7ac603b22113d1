// Lines of evaluation files, with complaints that name file and line.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "comm/communicator.h"
#include "src/train/data/mapped_file.h"

namespace amur {

// Calls line(text, offset, number) for every line that is not blank; what it returns, unless empty,
// says why the line is malformed. UsageError with the first five complaints ("x.tsv:3: ..."), after
// all lines were read; lines that are not UTF-8 are malformed, too.
using LineVisitor = std::function<std::string(std::string_view, size_t offset, int64_t number)>;
void read_lines(const TextBytes& text, const std::string& path, const LineVisitor& line);

// The fields of a TSV line, trimmed of white space.
std::vector<std::string_view> tsv_fields(std::string_view line);

// The whole of `field` as a number; false if it is none, or not finite.
bool parse_number(std::string_view field, double& value);
bool parse_number(std::string_view field, int32_t& value);

// The values of rank 0 on every rank, whatever was there. Collective.
void broadcast(std::vector<int32_t>& values, Communicator& world);

// `path` or, where only that is there, path.gz. IoError if neither is.
std::string plain_or_gzip(const std::string& path);

}  // namespace amur
