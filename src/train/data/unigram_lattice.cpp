#include "src/train/data/unigram_lattice.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <unordered_map>

#include "src/core/error.h"
#include "src/core/hash.h"

namespace amur {
namespace {

constexpr uint64_t kFree = ~uint64_t{0};
// SentencePiece's distance of an unknown character from the least likely piece.
constexpr double kUnknownPenalty = 10;

uint32_t character_length(std::string_view text) {
  uint32_t length = 1;
  while (length < text.size() && (static_cast<unsigned char>(text[length]) & 0xc0) == 0x80)
    ++length;
  return length;
}

double log_add(double a, double b) {
  if (a < b) std::swap(a, b);
  return b == -std::numeric_limits<double>::infinity() ? a : a + std::log1p(std::exp(b - a));
}

}  // namespace

UnigramLattice::UnigramLattice(const std::vector<Piece>& pieces) : nodes_(1) {
  std::unordered_map<uint64_t, uint32_t> edges;
  double least = 0;
  for (const Piece& piece : pieces) {
    least = std::min(least, piece.score);
    uint32_t node = 0;
    for (const char c : piece.text) {
      const uint64_t edge = uint64_t{node} << 8 | static_cast<unsigned char>(c);
      const auto [found, added] = edges.try_emplace(edge, static_cast<uint32_t>(nodes_.size()));
      if (added) nodes_.emplace_back();
      node = found->second;
    }
    if (node != 0) nodes_[node] = {piece.id, piece.score};
  }
  unknown_score_ = least - kUnknownPenalty;

  const size_t slots = std::bit_ceil(2 * edges.size() + 1);
  edge_keys_.assign(slots, kFree);
  edge_children_.assign(slots, 0);
  edge_mask_ = slots - 1;
  for (const auto& [edge, next] : edges) {
    uint64_t slot = mix64(edge) & edge_mask_;
    while (edge_keys_[slot] != kFree) slot = (slot + 1) & edge_mask_;
    edge_keys_[slot] = edge;
    edge_children_[slot] = next;
  }
}

uint32_t UnigramLattice::child(uint32_t node, unsigned char byte) const {
  const uint64_t edge = uint64_t{node} << 8 | byte;
  for (uint64_t slot = mix64(edge) & edge_mask_;; slot = (slot + 1) & edge_mask_) {
    if (edge_keys_[slot] == edge) return edge_children_[slot];
    if (edge_keys_[slot] == kFree) return 0;
  }
}

template <class F>
void UnigramLattice::for_each_piece(std::string_view text, uint32_t first, const F& f) const {
  const uint32_t character = character_length(text.substr(first));
  bool covered = false;
  uint32_t node = 0;
  for (auto end = static_cast<size_t>(first); end < text.size();) {
    node = child(node, static_cast<unsigned char>(text[end++]));
    if (node == 0) break;
    if (nodes_[node].id == kUnknown) continue;
    const auto length = static_cast<uint32_t>(end - first);
    f(nodes_[node].id, length, nodes_[node].score);
    covered |= length == character;
  }
  if (!covered) f(kUnknown, character, unknown_score_);
}

std::vector<UnigramLattice::Part> UnigramLattice::best(std::string_view text) const {
  struct Way {
    Part part{kUnknown, 0, 0};  // the last of it; of length 0: there is no way yet
    double score = 0;
  };
  const auto size = static_cast<uint32_t>(text.size());
  std::vector<Way> ways(size + size_t{1});  // to each byte
  for (uint32_t first = 0; first < size; first += character_length(text.substr(first)))
    for_each_piece(text, first, [&](int32_t id, uint32_t length, double score) {
      Way& way = ways[first + length];
      const double sum = score + ways[first].score;
      if (way.part.length == 0 || sum > way.score) way = {{id, first, length}, sum};
    });
  std::vector<Part> parts;
  for (uint32_t end = size; end > 0; end = parts.back().first) parts.push_back(ways[end].part);
  std::reverse(parts.begin(), parts.end());
  return parts;
}

std::vector<UnigramLattice::Part> UnigramLattice::sample(std::string_view text, double alpha,
                                                         RandomKey key) const {
  constexpr double kNone = -std::numeric_limits<double>::infinity();
  struct Arc {
    Part part;
    double weight;  // alpha * score
    uint32_t next;  // the arc found before that has the same end, 1-based; 0: none
  };
  const auto size = static_cast<uint32_t>(text.size());
  std::vector<double> total(size + 1, kNone);  // log of the summed weights of all ways to get there
  std::vector<uint32_t> last_arc(size + 1, 0);
  std::vector<Arc> arcs;
  total[0] = 0;
  const auto add = [&](int32_t id, uint32_t first, uint32_t length, double score) {
    const uint32_t end = first + length;
    arcs.push_back({{id, first, length}, alpha * score, last_arc[end]});
    last_arc[end] = static_cast<uint32_t>(arcs.size());
    total[end] = log_add(total[end], total[first] + alpha * score);
  };
  for (uint32_t first = 0; first < size; ++first) {
    if (total[first] == kNone) continue;  // inside a character
    for_each_piece(text, first, [&](int32_t id, uint32_t length, double score) {
      add(id, first, length, score);
    });
  }

  std::vector<Part> parts;
  for (uint32_t end = size; end > 0;) {
    double left = key.uniform(parts.size());
    uint32_t chosen = last_arc[end];
    for (uint32_t arc = chosen; arc != 0; arc = arcs[arc - 1].next) {
      chosen = arc;
      left -= std::exp(total[arcs[arc - 1].part.first] + arcs[arc - 1].weight - total[end]);
      if (left < 0) break;
    }
    parts.push_back(arcs[chosen - 1].part);
    end = parts.back().first;
  }
  std::reverse(parts.begin(), parts.end());
  return parts;
}

}  // namespace amur
