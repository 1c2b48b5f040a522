// Products of a few rows with weights that come from memory: a row or a dozen of them cost little
// more than reading the weight once.
//
// A weight [out, in] lies in panels of as many outputs as two vectors hold, [panels, in, outputs].
// The sums of up to MOST rows with all outputs of a panel stay in registers while the panel is read
// from its begin to its end. Each sum goes over the inputs one by one, however many rows there are:
// what a row gets does not depend on the others.

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/util/BFloat16.h>
#include <torch/library.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <type_traits>

namespace {

constexpr int BYTES = 64;

template <class T>
struct VectorOf {
  typedef T type __attribute__((vector_size(BYTES)));
};
template <class T>
using Vector = typename VectorOf<T>::type;

template <class T>
constexpr int WIDTH = 2 * BYTES / sizeof(T);

// Rows whose sums fit into the registers.
#ifdef __AVX512F__
constexpr int MOST = 14;
#else
constexpr int MOST = 3;
#endif

// Inputs whose weights are asked for beforehand: what comes from memory does not come by itself
// across the ends of its pages.
constexpr int AHEAD = 64;

// Numbers in a row of the states, in a row of what is made, and of them from this panel.
struct Part {
  int64_t inputs, width, used;
};

// The weights of one input for all outputs of a panel.
template <class T>
struct Weights {
  Vector<T> low, high;
};

template <class T>
inline Weights<T> read(const T* from) {
  Weights<T> weights;
  std::memcpy(&weights.low, from, BYTES);
  std::memcpy(&weights.high, from + WIDTH<T> / 2, BYTES);
  return weights;
}

// As bfloat16 the two halves of a panel alternate: its bits are the upper ones of a float.
inline Weights<float> read(const c10::BFloat16* from) {
  Vector<uint32_t> both;
  std::memcpy(&both, from, BYTES);
  return {(Vector<float>)(both << 16), (Vector<float>)(both & 0xffff0000u)};
}

template <class T, class Stored, int ROWS>
void multiply(const T* rows, const Stored* panel, T* out, Part part) {
  Weights<T> sums[ROWS] = {};
  for (int64_t input = 0; input < part.inputs; ++input) {
    const Stored* here = panel + input * WIDTH<T>;
    for (size_t line = 0; line < WIDTH<T>; line += BYTES / sizeof(Stored)) {
      __builtin_prefetch(here + AHEAD * WIDTH<T> + line);
    }
    const auto weights = read(here);
#pragma GCC unroll 16
    for (int row = 0; row < ROWS; ++row) {
      const T value = rows[row * part.inputs + input];
      sums[row].low += weights.low * value;
      sums[row].high += weights.high * value;
    }
  }
  for (int row = 0; row < ROWS; ++row) {
    std::memcpy(out + row * part.width, &sums[row], part.used * sizeof(T));
  }
}

template <class T, class Stored, int ROWS = MOST>
void multiply_some(int64_t some, const T* rows, const Stored* panel, T* out, Part part) {
  if (some == ROWS) {
    multiply<T, Stored, ROWS>(rows, panel, out, part);
  } else if constexpr (ROWS > 1) {
    multiply_some<T, Stored, ROWS - 1>(some, rows, panel, out, part);
  }
}

// One panel of one weight with all rows, in equal parts.
template <class T, class Stored>
void multiply_all(int64_t many, const T* rows, const Stored* panel, T* out, Part part) {
  const int64_t parts = (many + MOST - 1) / MOST;
  for (int64_t i = 0; i < parts; ++i) {
    const int64_t from = many * i / parts, to = many * (i + 1) / parts;
    multiply_some<T, Stored>(to - from, rows + from * part.inputs, panel, out + from * part.width,
                             part);
  }
}

template <class T>
at::Tensor by_type(const at::Tensor& states, at::TensorList panels, at::IntArrayRef widths) {
  const auto given = states.contiguous();
  const int64_t inputs = given.size(-1), many = inputs ? given.numel() / inputs : 0;
  auto sizes = given.sizes().vec();
  sizes.back() = std::accumulate(widths.begin(), widths.end(), int64_t{0});
  auto out = at::empty(sizes, given.options());
  const T* rows = given.const_data_ptr<T>();
  T* to = out.template mutable_data_ptr<T>();
  int64_t all = 0;
  for (const auto& weight : panels) all += weight.size(0);
  // What is worth another thread.
  const int64_t grain = std::max<int64_t>(1, 32768 / std::max<int64_t>(1, inputs * WIDTH<T>));
  at::parallel_for(0, all, grain, [&](int64_t begin, int64_t end) {
    int64_t first = 0, offset = 0;
    for (size_t which = 0; which < panels.size(); ++which) {
      const auto& weight = panels[which];
      const int64_t last = first + weight.size(0);
      for (int64_t i = std::max(begin, first); i < std::min(end, last); ++i) {
        const int64_t skipped = (i - first) * WIDTH<T>;
        const Part part{inputs, sizes.back(), std::min<int64_t>(WIDTH<T>, widths[which] - skipped)};
        T* here = to + offset + skipped;
        if constexpr (std::is_same_v<T, float>) {
          if (weight.scalar_type() == at::kBFloat16) {
            multiply_all<T>(many, rows, weight.const_data_ptr<c10::BFloat16>() + skipped * inputs,
                            here, part);
            continue;
          }
        }
        multiply_all<T>(many, rows, weight.const_data_ptr<T>() + skipped * inputs, here, part);
      }
      first = last;
      offset += widths[which];
    }
  });
  return out;
}

at::Tensor product(const at::Tensor& states, at::TensorList panels, at::IntArrayRef widths) {
  return states.scalar_type() == at::kDouble ? by_type<double>(states, panels, widths)
                                             : by_type<float>(states, panels, widths);
}

}  // namespace

TORCH_LIBRARY_IMPL(jakiro, CPU, library) {
  library.impl("product", &product);
}
