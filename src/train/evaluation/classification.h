// How well a linear classifier on the embeddings tells labels apart, without training one: the
// closed form for classes that are Gaussians of one covariance (kexue.fm/archives/8578).
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "src/train/evaluation/bootstrap.h"
#include "src/train/text_embedder.h"

namespace amur {

// Sums over labelled rows, spread over ranks.
class ClassMoments {
 public:
  ClassMoments(int64_t classes, int64_t width);
  // rows [n, e] f32 or f64 and labels [n], the same on all ranks: each adds its share of the sums,
  // cut by class and coordinate, so that these have the same bits at any number of ranks.
  void add(ConstTensorView rows, std::span<const int32_t> labels, const Communicator& world);
  // One all-reduce; once, after the last `add`. Collective.
  void reduce(Communicator& world);

  int64_t classes() const { return sums.shape()[0]; }
  int64_t width() const { return sums.shape()[1]; }

  std::vector<int64_t> counts;  // [classes], of all ranks from the start
  Tensor sums;                  // [classes, e] f64
  Tensor second;                // [e, e] f64, sum x x^T
};

struct LinearClassifier {
  Tensor weight;             // [classes, e] f64
  std::vector<double> bias;  // [classes]
  int64_t dimensions = 0;    // rank of the covariance
};

// w_c = S^+ mu_c, b_c = ln p_c - mu_c S^+ mu_c / 2, with mu_c the mean of class c, p_c its share
// and S the covariance inside the classes. S^+ is the pseudo-inverse: what varies less than 1e-9 of
// the largest coordinate's variance is taken as constant, so coordinates that repeat each other (a
// widened model) change nothing. A class without samples is never predicted. UsageError where S
// is 0.
LinearClassifier closed_form_classifier(const ClassMoments& moments);

// The class of each row, the first of equals.
std::vector<int32_t> classify(const LinearClassifier& classifier, ConstTensorView rows);

struct ClassificationOptions {
  std::string train;  // text <TAB> label, also .gz; a first line "text <TAB> label" is a heading
  std::string test;   // the same; "": a fifth of `train`, drawn by the text (equal texts together)
  int tower = 0;      // 0 query, 1 document
  std::string prefix;
};

// "accuracy" on the test texts, and "majority", that of always giving the most frequent label of
// the training texts. Collective; UsageError and IoError on every rank.
TaskScores evaluate_classification(const ClassificationOptions& options, TextEmbedder& embedder,
                                   Communicator& world);

}  // namespace amur
