// Parameters: slabs, fan-in, and initial values that do not depend on the grid.
#include <gtest/gtest.h>

#include <cmath>
#include <set>
#include <vector>

#include "src/model/parameter.h"

namespace amur {
namespace {

using Kind = Initializer::Kind;

Parameter make(std::string name, std::vector<Axis> axes, int shard_axis = -1,
               Initializer init = {Kind::normal, 1.0}, ParamKind kind = ParamKind::weight) {
  Parameter p;
  p.name = std::move(name);
  p.kind = kind;
  p.axes = std::move(axes);
  p.sharding.axis = shard_axis;
  p.init = init;
  return p;
}

Parameter qkv(int64_t heads = 4) {
  return make(
      "attention.qkv.weight",
      {{3, AxisRole::fixed}, {heads, AxisRole::heads}, {5, AxisRole::head}, {7, AxisRole::model}},
      1);
}

TEST(Parameter, FanInIsWhatOneOutputSumsOver) {
  EXPECT_EQ(qkv().fan_in(), 7);
  EXPECT_EQ(make("out", {{7, AxisRole::model}, {4, AxisRole::heads}, {5, AxisRole::head}}).fan_in(),
            20);
  EXPECT_EQ(make("down", {{7, AxisRole::model}, {28, AxisRole::ffn}}).fan_in(), 28);
  EXPECT_EQ(
      make("gate", {{2, AxisRole::fixed}, {28, AxisRole::ffn}, {7, AxisRole::model}}).fan_in(), 7);
  EXPECT_EQ(
      make("table", {{100, AxisRole::vocab}, {7, AxisRole::model}}, -1, {}, ParamKind::embedding)
          .fan_in(),
      1);
  EXPECT_EQ(make("scale", {}, -1, {}, ParamKind::scalar).fan_in(), 1);
}

TEST(Parameter, SlabsTileTheTensorForAnyNumberOfRanks) {
  const Parameter p = qkv(6);
  for (int size : {1, 2, 3, 4, 6}) {
    int64_t next = 0;
    for (int rank = 0; rank < size; ++rank) {
      const Slab slab = slab_of(p, rank, size);
      EXPECT_EQ(slab.first, (Shape{0, next, 0, 0}));
      EXPECT_EQ(slab.count.with(1, 1), (Shape{3, 1, 5, 7}));
      next += slab.count[1];
    }
    EXPECT_EQ(next, 6);
  }
  const Parameter whole = make("bias", {{9, AxisRole::model}});
  EXPECT_EQ(slab_of(whole, 2, 3).count, Shape{9});
  EXPECT_THROW(slab_of(whole, 3, 3), InternalError);
}

TEST(ParameterSet, RefusesTwoOfOneNameAndKeepsReferences) {
  ParameterSet set;
  Parameter& first = set.add(make("a", {{2, AxisRole::model}}));
  for (int i = 0; i < 100; ++i) set.add(make(fmt::format("p{}", i), {{2, AxisRole::model}}));
  EXPECT_EQ(&first, set.find("a"));
  EXPECT_EQ(set.find("b"), nullptr);
  EXPECT_THROW(set.add(make("a", {})), InternalError);
  EXPECT_EQ(set.global_elements(), 202);
}

template <class T>
std::vector<T> values(ParameterSet& set, size_t i) {
  const T* p = set[i].value.as<T>();
  return {p, p + set[i].value.elements()};
}

TEST(ParameterSet, InitialValuesOfShardsAreThoseOfTheWhole) {
  for (int axis : {0, 1, 2, 3}) {
    ParameterSet whole;
    Parameter p = make(
        "w",
        {{4, AxisRole::fixed}, {6, AxisRole::heads}, {5, AxisRole::head}, {7, AxisRole::model}},
        axis, {Kind::truncated_normal, 0.5});
    whole.add(std::move(p));
    whole.allocate(DType::f32, Device::cpu(), 0, 1);
    whole.initialise(7, 0, 1);
    const std::vector<float> expected = values<float>(whole, 0);
    const Shape global = whole[0].global_shape();
    for (int size : {2, 3}) {
      for (int rank = 0; rank < size; ++rank) {
        ParameterSet part;
        part.add(make("w", whole[0].axes, axis, whole[0].init));
        part.allocate(DType::f32, Device::cpu(), rank, size);
        part.initialise(7, rank, size);
        const Slab slab = slab_of(part[0], rank, size);
        const std::vector<float> got = values<float>(part, 0);
        size_t i = 0;
        for (int64_t a = 0; a < slab.count[0]; ++a)
          for (int64_t b = 0; b < slab.count[1]; ++b)
            for (int64_t c = 0; c < slab.count[2]; ++c)
              for (int64_t d = 0; d < slab.count[3]; ++d) {
                const int64_t index =
                    (((slab.first[0] + a) * global[1] + slab.first[1] + b) * global[2] +
                     slab.first[2] + c) *
                        global[3] +
                    slab.first[3] + d;
                ASSERT_EQ(got[i++], expected[static_cast<size_t>(index)]);
              }
        EXPECT_EQ(i, got.size());
      }
    }
  }
}

TEST(ParameterSet, ValuesDependOnSeedAndNameOnly) {
  auto first_values = [](uint64_t seed, const char* name, bool with_other, DType dtype) {
    ParameterSet set;
    if (with_other) set.add(make("other", {{11, AxisRole::model}}));
    set.add(make(name, {{8, AxisRole::model}}));
    set.allocate(dtype, Device::cpu(), 0, 1);
    set.initialise(seed, 0, 1);
    std::vector<double> v;
    for (int i = 0; i < 8; ++i)
      v.push_back(dtype == DType::f64 ? set.find(name)->value.as<double>()[i]
                                      : set.find(name)->value.as<float>()[i]);
    return v;
  };
  const auto reference = first_values(1, "w", false, DType::f32);
  EXPECT_EQ(first_values(1, "w", true, DType::f32), reference);
  EXPECT_NE(first_values(2, "w", false, DType::f32), reference);
  EXPECT_NE(first_values(1, "v", false, DType::f32), reference);
  const auto in_double = first_values(1, "w", false, DType::f64);
  for (size_t i = 0; i < 8; ++i) EXPECT_EQ(static_cast<float>(in_double[i]), reference[i]);
}

TEST(ParameterSet, DistributionsHaveTheAskedMoments) {
  ParameterSet set;
  const int64_t n = 200000;
  set.add(make("normal", {{n, AxisRole::model}}, -1, {Kind::normal, 0.5}));
  set.add(make("cut", {{n, AxisRole::model}}, -1, {Kind::truncated_normal, 0.5}));
  set.add(make("constant", {{4, AxisRole::model}}, -1, {Kind::constant, 1.25}));
  set.add(make("zeros", {{4, AxisRole::model}}, -1, {Kind::zeros, 3}));
  set.allocate(DType::f64, Device::cpu(), 0, 1);
  set.initialise(0, 0, 1);
  for (size_t k : {0, 1}) {
    double sum = 0, squares = 0, largest = 0;
    std::set<double> distinct;
    for (double v : values<double>(set, k)) {
      sum += v;
      squares += v * v;
      largest = std::max(largest, std::abs(v));
      distinct.insert(v);
    }
    const double count = static_cast<double>(n);
    // five standard errors
    EXPECT_NEAR(sum / count, 0, 5 * 0.5 / std::sqrt(count)) << set[k].name;
    EXPECT_NEAR(std::sqrt(squares / count), 0.5, 5 * 0.5 / std::sqrt(2 * count)) << set[k].name;
    EXPECT_GT(distinct.size(), static_cast<size_t>(n) - 10);
    if (k == 0) {
      EXPECT_GT(largest, 0.5 * 3);
    } else {  // cut at two sigma of the uncut normal, which is 1 / 0.8796 times the asked deviation
      EXPECT_LE(largest, 2 * 0.5 / 0.8796);
      EXPECT_GT(largest, 1.99 * 0.5 / 0.8797);
    }
  }
  EXPECT_EQ(values<double>(set, 2), std::vector<double>(4, 1.25));
  EXPECT_EQ(values<double>(set, 3), std::vector<double>(4, 0));
}

}  // namespace
}  // namespace amur
