#include "src/train/evaluation/classification.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <map>
#include <string_view>

#include "kernels/elementwise.h"
#include "kernels/gemm.h"
#include "src/core/random.h"
#include "src/train/agreement.h"
#include "src/train/data/pair_source.h"
#include "src/train/evaluation/input.h"
#include "src/train/stopwatch.h"
#include "src/train/text_windows.h"

namespace amur {
namespace {

constexpr int64_t kBlockRows = 1024;  // turned into f64 at a time
constexpr int64_t kSlab = 64;         // rows of the second moments that one rank sums
constexpr double kConstant = 1e-9;    // of the largest variance
constexpr double kTestShare = 0.2;

// S = L L^T with L [e, r] of full column rank, as its transpose [r, e]: Cholesky with pivots.
std::vector<std::vector<double>> pivoted_factor(const std::vector<double>& s, size_t e) {
  std::vector<std::vector<double>> columns;
  std::vector<double> left(e);  // diagonal of what is not yet in L L^T
  for (size_t i = 0; i < e; ++i) left[i] = s[i * e + i];
  const double least = kConstant * *std::max_element(left.begin(), left.end());
  while (columns.size() < e) {
    const auto pivot =
        static_cast<size_t>(std::max_element(left.begin(), left.end()) - left.begin());
    if (!(left[pivot] > least)) break;
    const double* from = s.data() + pivot * e;
    std::vector<double> column(from, from + e);
    for (const auto& earlier : columns)
      for (size_t i = 0; i < e; ++i) column[i] -= earlier[pivot] * earlier[i];
    const double scale = 1 / std::sqrt(left[pivot]);
    for (size_t i = 0; i < e; ++i) {
      column[i] *= scale;
      left[i] -= column[i] * column[i];
    }
    left[pivot] = 0;
    columns.push_back(std::move(column));
  }
  return columns;
}

double dot(const std::vector<double>& a, const std::vector<double>& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}

// G = C C^T, positive definite [r, r]; solves G x = b.
class Cholesky {
 public:
  explicit Cholesky(std::vector<std::vector<double>> g) : c_(std::move(g)) {
    for (size_t i = 0; i < c_.size(); ++i)
      for (size_t j = 0; j <= i; ++j) {
        double sum = c_[i][j];
        for (size_t k = 0; k < j; ++k) sum -= c_[i][k] * c_[j][k];
        c_[i][j] = i == j ? std::sqrt(sum) : sum / c_[j][j];
      }
  }
  std::vector<double> solve(std::vector<double> b) const {
    const size_t n = c_.size();
    for (size_t i = 0; i < n; ++i) {
      for (size_t k = 0; k < i; ++k) b[i] -= c_[i][k] * b[k];
      b[i] /= c_[i][i];
    }
    for (size_t i = n; i-- > 0;) {
      for (size_t k = i + 1; k < n; ++k) b[i] -= c_[k][i] * b[k];
      b[i] /= c_[i][i];
    }
    return b;
  }

 private:
  std::vector<std::vector<double>> c_;
};

}  // namespace

ClassMoments::ClassMoments(int64_t classes, int64_t width)
    : counts(static_cast<size_t>(classes), 0),
      sums(Tensor::zeros({classes, width}, DType::f64)),
      second(Tensor::zeros({width, width}, DType::f64)) {}

void ClassMoments::add(ConstTensorView rows, std::span<const int32_t> labels,
                       const Communicator& world) {
  const int64_t e = width();
  for (int64_t first = 0; first < rows.rows(); first += kBlockRows) {
    const int64_t n = std::min(kBlockRows, rows.rows() - first);
    Tensor block({n, e}, DType::f64);
    cast(rows.slice(first, n), block);
    const double* x = block.as<double>();
    for (int64_t i = 0; i < n; ++i) {
      const int32_t label = labels[static_cast<size_t>(first + i)];
      ++counts[static_cast<size_t>(label)];
      if (label % world.size() != world.rank()) continue;
      for (int64_t k = 0; k < e; ++k) sums.as<double>()[label * e + k] += x[i * e + k];
    }
    for (int64_t at = kSlab * world.rank(); at < e; at += kSlab * world.size()) {
      const int64_t wide = std::min(kSlab, e - at);
      Tensor slab({n, wide}, DType::f64);
      for (int64_t i = 0; i < n; ++i)
        std::copy_n(x + i * e + at, wide, slab.as<double>() + i * wide);
      gemm(Transpose::yes, Transpose::no, 1, slab, block, 1, second.view().slice(at, wide));
    }
  }
}

void ClassMoments::reduce(Communicator& world) {
  const std::array both = {sums.view(), second.view()};
  world.all_reduce(both, ReduceOp::sum);
}

LinearClassifier closed_form_classifier(const ClassMoments& moments) {
  const auto e = static_cast<size_t>(moments.width());
  const auto classes = static_cast<size_t>(moments.classes());
  double n = 0;
  for (int64_t count : moments.counts) n += static_cast<double>(count);
  std::vector<std::vector<double>> means(classes, std::vector<double>(e, 0.0));
  std::vector<double> s(moments.second.as<double>(), moments.second.as<double>() + e * e);
  for (double& value : s) value /= n;
  for (size_t c = 0; c < classes; ++c) {
    const auto count = static_cast<double>(moments.counts[c]);
    if (count == 0) continue;
    for (size_t k = 0; k < e; ++k) means[c][k] = moments.sums.as<double>()[c * e + k] / count;
    for (size_t i = 0; i < e; ++i)
      for (size_t k = 0; k < e; ++k) s[i * e + k] -= count / n * means[c][i] * means[c][k];
  }

  // With z = (L^T L)^-1 L^T x, z.z = x S^+ x: the classes are round in z.
  const std::vector<std::vector<double>> factor = pivoted_factor(s, e);
  const size_t r = factor.size();
  if (r == 0)
    throw UsageError(
        "the embeddings inside each class are all the same: the classifier needs classes with "
        "several different texts");
  std::vector<std::vector<double>> gram(r, std::vector<double>(r));
  for (size_t i = 0; i < r; ++i)
    for (size_t j = 0; j <= i; ++j) gram[i][j] = dot(factor[i], factor[j]);
  const Cholesky cholesky(std::move(gram));
  LinearClassifier result;
  result.weight = Tensor::zeros({moments.classes(), moments.width()}, DType::f64);
  result.dimensions = static_cast<int64_t>(r);
  for (size_t c = 0; c < classes; ++c) {
    if (moments.counts[c] == 0) {
      result.bias.push_back(-std::numeric_limits<double>::infinity());
      continue;
    }
    std::vector<double> z(r);
    for (size_t i = 0; i < r; ++i) z[i] = dot(factor[i], means[c]);
    z = cholesky.solve(std::move(z));
    result.bias.push_back(std::log(static_cast<double>(moments.counts[c]) / n) - 0.5 * dot(z, z));
    z = cholesky.solve(std::move(z));
    double* w = result.weight.as<double>() + c * e;
    for (size_t i = 0; i < r; ++i)
      for (size_t k = 0; k < e; ++k) w[k] += z[i] * factor[i][k];
  }
  return result;
}

std::vector<int32_t> classify(const LinearClassifier& classifier, ConstTensorView rows) {
  const int64_t classes = classifier.weight.shape()[0];
  Tensor wide(rows.shape(), DType::f64), logits({rows.rows(), classes}, DType::f64);
  cast(rows, wide);
  gemm(Transpose::no, Transpose::yes, 1, wide, classifier.weight, 0, logits);
  std::vector<int32_t> labels;
  for (int64_t i = 0; i < rows.rows(); ++i) {
    double* row = logits.as<double>() + i * classes;
    for (int64_t c = 0; c < classes; ++c) row[c] += classifier.bias[static_cast<size_t>(c)];
    labels.push_back(static_cast<int32_t>(std::max_element(row, row + classes) - row));
  }
  return labels;
}

namespace {

// Labelled texts as rank 0 reads them; labels in alphabetical order of their names.
struct Labelled {
  TextBytes train_bytes, test_bytes;
  std::vector<std::string_view> train, test;
  std::vector<int32_t> train_labels, test_labels;
  int32_t classes = 0;

  explicit Labelled(const ClassificationOptions& options) {
    std::vector<std::string_view> names, test_names;
    read(options.train, train_bytes, [&](std::string_view text, std::string_view label) {
      const RandomKey key =
          RandomKey(0).fold(static_cast<uint64_t>(RandomPurpose::evaluation_split));
      const bool held_out =
          options.test.empty() && key.uniform(text_identity(folded(text))) < kTestShare;
      (held_out ? test : train).push_back(text);
      (held_out ? test_names : names).push_back(label);
      return std::string();
    });
    std::map<std::string_view, int32_t> numbers;
    for (std::string_view name : names) numbers[name];
    if (options.test.empty()) {
      for (std::string_view name : test_names) numbers[name];
    } else {
      read(options.test, test_bytes, [&](std::string_view text, std::string_view label) {
        if (!numbers.contains(label))
          return fmt::format("the label '{}' is not in {}", label, options.train);
        test.push_back(text);
        test_names.push_back(label);
        return std::string();
      });
    }
    for (auto& [name, number] : numbers) number = classes++;
    for (std::string_view name : names) train_labels.push_back(numbers[name]);
    for (std::string_view name : test_names) test_labels.push_back(numbers[name]);
    if (train.empty() || test.empty())
      throw UsageError("{}: {} texts to learn from and {} to test; both need some", options.train,
                       train.size(), test.size());
    if (classes < 2)
      throw UsageError("{}: the only label is '{}'; a classifier needs two", options.train,
                       names[0]);
  }

 private:
  template <class Add>
  static void read(const std::string& path, TextBytes& bytes, Add&& add) {
    bytes = TextBytes::open(path);
    read_lines(bytes, path, [&](std::string_view line, size_t, int64_t number) {
      const auto fields = tsv_fields(line);
      if (fields.size() != 2)
        return fmt::format("{} columns, wanted 2: text, label", fields.size());
      if (number == 1 && fields[0] == "text" && fields[1] == "label") return std::string();
      if (fields[1].empty()) return std::string("the label is empty");
      return add(fields[0], fields[1]);
    });
  }
};

}  // namespace

TaskScores evaluate_classification(const ClassificationOptions& options, TextEmbedder& embedder,
                                   Communicator& world) {
  Stopwatch watch;
  std::unique_ptr<Labelled> data;
  read_on_first_rank(world, [&] { data = std::make_unique<Labelled>(options); });
  std::vector<int32_t> train, test;
  if (data) train = data->train_labels, test = data->test_labels;
  broadcast(train, world);
  broadcast(test, world);
  const int64_t classes = world.max(data ? int64_t{data->classes} : 0);
  const auto texts = [&](const std::vector<std::string_view> Labelled::*which, int64_t count) {
    return numbered_texts(count, [&, which](int64_t i) {
      return fmt::format("{}{}", options.prefix, ((*data).*which)[static_cast<size_t>(i)]);
    });
  };

  std::unique_ptr<ClassMoments> moments;
  embed_windows(texts(&Labelled::train, std::ssize(train)), options.tower, embedder, world,
                [&](const TextWindow& window) {
                  if (!moments)
                    moments = std::make_unique<ClassMoments>(classes, window.rows.columns());
                  moments->add(window.rows,
                               std::span(train).subspan(static_cast<size_t>(window.first),
                                                        window.texts.size()),
                               world);
                });
  moments->reduce(world);
  const LinearClassifier classifier = closed_form_classifier(*moments);
  const auto majority = static_cast<int32_t>(
      std::max_element(moments->counts.begin(), moments->counts.end()) - moments->counts.begin());

  // Per test text: right, and of the most frequent class.
  const int64_t n = std::ssize(test);
  Tensor values = Tensor::zeros({n, 2}, DType::f64);
  embed_windows(
      texts(&Labelled::test, n), options.tower, embedder, world, [&](const TextWindow& window) {
        for (int64_t at = kBlockRows * world.rank(); at < window.rows.rows();
             at += kBlockRows * world.size()) {
          const auto found = classify(
              classifier, window.rows.slice(at, std::min(kBlockRows, window.rows.rows() - at)));
          for (size_t i = 0; i < found.size(); ++i) {
            const size_t text = static_cast<size_t>(window.first + at) + i;
            values.as<double>()[2 * text] = found[i] == test[text];
            values.as<double>()[2 * text + 1] = majority == test[text];
          }
        }
      });
  world.all_reduce(values, ReduceOp::sum);
  const std::vector<Interval> intervals = bootstrap_means(values, world);
  std::array<double, 2> sum = {};
  for (int64_t i = 0; i < 2 * n; ++i) sum[static_cast<size_t>(i % 2)] += values.as<double>()[i];
  TaskScores result;
  result.task = "classification";
  result.set = options.test.empty() ? options.train : options.test;
  result.scores = {{"accuracy", sum[0] / static_cast<double>(n), intervals[0]},
                   {"majority", sum[1] / static_cast<double>(n), intervals[1]}};
  result.counts = {{"classes", classes},
                   {"train", std::ssize(train)},
                   {"test", n},
                   {"dimensions", classifier.dimensions}};
  result.seconds = watch.elapsed();
  return result;
}

}  // namespace amur
