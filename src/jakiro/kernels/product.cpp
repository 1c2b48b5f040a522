// Products of a few rows with weights that come from memory: a row or a dozen of them cost little
// more than reading the weight once.
//
// A weight [out, in] lies in panels of as many outputs as two vectors of sums hold, [panels, in,
// outputs], as bfloat16 with the inputs in pairs, [panels, in / 2, outputs, 2]: a step reads two
// vectors. The sums of up to MOST rows with all outputs of a panel stay in registers while the
// panel is read from its begin to its end. Each sum goes over the inputs in one order, however many
// rows there are: what a row gets does not depend on the others.

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/util/BFloat16.h>
#include <torch/library.h>

#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <type_traits>

namespace {

using Half = c10::BFloat16;

constexpr int BYTES = 64;

template <class T>
struct VectorOf {
  typedef T type __attribute__((vector_size(BYTES)));
};
template <class T>
using Vector = typename VectorOf<T>::type;

// What products of T are summed up in.
template <class T>
using Sum = std::conditional_t<std::is_same_v<T, Half>, float, T>;

template <class T>
constexpr int WIDTH = 2 * BYTES / sizeof(Sum<T>);

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

// Of all outputs of a panel: sums of a row, or the weights of an input.
template <class T>
struct Outputs {
  Vector<T> low, high;
};

template <class T, class From>
inline Outputs<T> read(const From* from) {
  Outputs<T> found;
  std::memcpy(&found.low, from, BYTES);
  std::memcpy(&found.high, reinterpret_cast<const char*>(from) + BYTES, BYTES);
  return found;
}

template <int ROWS, class T>
inline void add(Outputs<Sum<T>>* sums, const Outputs<Sum<T>>& weights, const T* values,
                int64_t inputs) {
#pragma GCC unroll 16
  for (int row = 0; row < ROWS; ++row) {
    const Sum<T> value = values[row * inputs];
    sums[row].low += weights.low * value;
    sums[row].high += weights.high * value;
  }
}

// A step of weights in their own type: one input.
template <int ROWS, class T>
inline int step(Outputs<T>* sums, const T* from, const T* values, int64_t inputs) {
  add<ROWS>(sums, read<T>(from), values, inputs);
  return 1;
}

// Of weights of bfloat16: two inputs. Their bits are the upper ones of floats.
template <int ROWS, class T>
inline int step(Outputs<float>* sums, const Half* from, const T* values, int64_t inputs) {
  const auto pair = read<uint32_t>(from);
#ifdef __AVX512BF16__
  if constexpr (std::is_same_v<T, Half>) {
#pragma GCC unroll 16
    for (int row = 0; row < ROWS; ++row) {
      int both;
      std::memcpy(&both, values + row * inputs, sizeof(both));
      const auto value = (__m512bh)_mm512_set1_epi32(both);
      sums[row].low = _mm512_dpbf16_ps(sums[row].low, (__m512bh)pair.low, value);
      sums[row].high = _mm512_dpbf16_ps(sums[row].high, (__m512bh)pair.high, value);
    }
    return 2;
  }
#endif
  const auto floats = [](auto low, auto high) {
    return Outputs<float>{(Vector<float>)low, (Vector<float>)high};
  };
  add<ROWS>(sums, floats(pair.low << 16, pair.high << 16), values, inputs);
  add<ROWS>(sums, floats(pair.low & 0xffff0000u, pair.high & 0xffff0000u), values + 1, inputs);
  return 2;
}

template <class T, class Stored, int ROWS>
void multiply(const T* rows, const Stored* panel, T* out, Part part) {
  Outputs<Sum<T>> sums[ROWS] = {};
  for (int64_t input = 0; input < part.inputs;) {
    const Stored* here = panel + input * WIDTH<T>;
    const auto ahead = reinterpret_cast<const char*>(here + AHEAD * WIDTH<T>);
    __builtin_prefetch(ahead);
    __builtin_prefetch(ahead + BYTES);
    input += step<ROWS>(sums, here, rows + input, part.inputs);
  }
  for (int row = 0; row < ROWS; ++row) {
    Sum<T> numbers[WIDTH<T>];
    std::memcpy(numbers, &sums[row], sizeof(numbers));
    std::copy(numbers, numbers + part.used, out + row * part.width);
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
            multiply_all<T>(many, rows, weight.const_data_ptr<Half>() + skipped * inputs, here,
                            part);
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
  const auto dtype = states.scalar_type();
  if (dtype == at::kBFloat16) return by_type<Half>(states, panels, widths);
  return dtype == at::kDouble ? by_type<double>(states, panels, widths)
                              : by_type<float>(states, panels, widths);
}

}  // namespace

TORCH_LIBRARY_IMPL(jakiro, CPU, library) {
  library.impl("product", &product);
}
