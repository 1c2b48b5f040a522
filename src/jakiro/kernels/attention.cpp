// Attention of a few rows over the slots of a cache, under a mask.
//
// The kernel of the library divides its work for hundreds of rows; of one row or a dozen most of
// the time goes into calls of small products. Here a task takes up to MOST rows that share their
// keys and values. What a row gets depends neither on the others nor on what its mask hides, to the
// last bit: sums go from slot to slot, and what is hidden adds zeros. (With many rows the library
// would be as fast, of bfloat16 up to half as fast again, but does not have that.)

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/cpu/vec/functional.h>
#include <ATen/cpu/vec/vec.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/scaled_dot_product_attention.h>
#include <c10/util/BFloat16.h>
#include <torch/library.h>

#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <vector>

namespace {

constexpr int MOST = 8;

using Half = c10::BFloat16;

// What is computed in, where T is kept.
template <class T>
using Number = std::conditional_t<std::is_same_v<T, Half>, float, T>;

template <class T>
using Vector = at::vec::Vectorized<Number<T>>;

template <class T>
inline Vector<T> load(const T* from) {
  return Vector<T>::loadu(from);
}

inline Vector<Half> load(const Half* from) {
  Vector<Half> found;
  at::vec::load_fp32_from_bf16(from, found);
  return found;
}

template <class T>
inline void store(const Vector<T>& numbers, T* to) {
  Number<T> each[Vector<T>::size()];
  numbers.store(each);
  std::copy(each, each + Vector<T>::size(), to);
}

constexpr auto ADD = [](auto left, auto right) { return left + right; };
constexpr auto LARGER = [](auto left, auto right) { return at::vec::maximum(left, right); };

// Keys and values of one head: a slot is so many numbers behind the one before.
template <class T>
struct Entries {
  const T *keys, *values;
  int64_t key_step, value_step, slots, key_size, value_size;
};

// A query, its row of the mask, and where its result goes.
template <class T>
struct Row {
  const Number<T>* query;
  const T* mask;
  T* out;
};

// ``weights``: room for ROWS times the slots.
template <class T, int ROWS>
void attend(const Row<T>* rows, const Entries<T>& seen, Number<T> scale, Number<T>* weights) {
  constexpr int64_t LANES = Vector<T>::size();
  const auto slots = seen.slots;
  for (int64_t slot = 0; slot < slots; ++slot) {
    Vector<T> sums[ROWS];
    std::fill(sums, sums + ROWS, Vector<T>(0));
    for (int64_t i = 0; i < seen.key_size; i += LANES) {
      const auto key = load(seen.keys + slot * seen.key_step + i);
#pragma GCC unroll 8
      for (int row = 0; row < ROWS; ++row) {
        sums[row] = at::vec::fmadd(Vector<T>::loadu(rows[row].query + i), key, sums[row]);
      }
    }
    for (int row = 0; row < ROWS; ++row) {
      const auto product = at::vec::vec_reduce_all<Number<T>>(ADD, sums[row]);
      weights[row * slots + slot] = product * scale + Number<T>(rows[row].mask[slot]);
    }
  }
  for (int row = 0; row < ROWS; ++row) {
    auto* own = weights + row * slots;
    const Vector<T> largest(at::vec::reduce_all<Number<T>>(LARGER, own, slots));
    at::vec::map<Number<T>>([&](auto score) { return (score - largest).exp(); }, own, own, slots);
  }
  Number<T> totals[ROWS] = {};
  for (int64_t slot = 0; slot < slots; ++slot) {
    for (int row = 0; row < ROWS; ++row) totals[row] += weights[row * slots + slot];
  }
  for (int64_t i = 0; i < seen.value_size; i += LANES) {
    Vector<T> sums[ROWS];
    std::fill(sums, sums + ROWS, Vector<T>(0));
    for (int64_t slot = 0; slot < slots; ++slot) {
      const auto value = load(seen.values + slot * seen.value_step + i);
#pragma GCC unroll 8
      for (int row = 0; row < ROWS; ++row) {
        sums[row] = at::vec::fmadd(value, Vector<T>(weights[row * slots + slot]), sums[row]);
      }
    }
    for (int row = 0; row < ROWS; ++row) {
      store<T>(sums[row] * Vector<T>(1 / totals[row]), rows[row].out + i);
    }
  }
}

template <class T, int ROWS = MOST>
void attend_some(int64_t some, const Row<T>* rows, const Entries<T>& seen, Number<T> scale,
                 Number<T>* weights) {
  if (some == ROWS) {
    attend<T, ROWS>(rows, seen, scale, weights);
  } else if constexpr (ROWS > 1) {
    attend_some<T, ROWS - 1>(some, rows, seen, scale, weights);
  }
}

template <class T>
at::Tensor by_type(const at::Tensor& queries, const at::Tensor& keys, const at::Tensor& values,
                   const at::Tensor& mask, Number<T> scale) {
  const auto batch = queries.size(0), heads = queries.size(1), many = queries.size(2);
  const auto groups = keys.size(1), slots = keys.size(2), outer = values.size(3);
  // Rows that share keys and values, head by head, and the tasks that they are divided into.
  const auto sharing = heads / groups * many, parts = (sharing + MOST - 1) / MOST;
  auto out = at::empty({batch, many, heads, outer}, queries.options());
  T* to = out.template mutable_data_ptr<T>();
  const T *from = queries.const_data_ptr<T>(), *masks = mask.const_data_ptr<T>();
  const auto mask_step = mask.size(0) > 1 ? mask.stride(0) : 0;
  at::parallel_for(0, batch * groups * parts, 1, [&](int64_t begin, int64_t end) {
    const auto size = keys.size(3);
    std::vector<Number<T>> weights(MOST * slots), asked(MOST * size);
    for (int64_t task = begin; task < end; ++task) {
      const auto part = task % parts, group = task / parts % groups, text = task / parts / groups;
      const auto first = sharing * part / parts, last = sharing * (part + 1) / parts;
      Row<T> rows[MOST];
      for (int64_t i = first; i < last; ++i) {
        const auto head = group * (heads / groups) + i / many, row = i % many;
        const T* query =
            from + text * queries.stride(0) + head * queries.stride(1) + row * queries.stride(2);
        rows[i - first] = {
            std::copy(query, query + size, asked.data() + (i - first) * size) - size,
            masks + text * mask_step + row * mask.stride(2),
            to + ((text * many + row) * heads + head) * outer,
        };
      }
      const Entries<T> seen{
          keys.const_data_ptr<T>() + text * keys.stride(0) + group * keys.stride(1),
          values.const_data_ptr<T>() + text * values.stride(0) + group * values.stride(1),
          keys.stride(2),
          values.stride(2),
          slots,
          size,
          outer,
      };
      attend_some<T>(last - first, rows, seen, scale, weights.data());
    }
  });
  return out;
}

bool fits(const at::Tensor& queries, const at::Tensor& keys, const at::Tensor& values,
          const at::Tensor& mask) {
  const auto dtype = queries.scalar_type();
  const auto lanes = dtype == at::kDouble ? Vector<double>::size() : Vector<float>::size();
  for (const auto& each : {queries, keys, values, mask}) {
    if (each.scalar_type() != dtype || each.stride(3) != 1) return false;
  }
  return (dtype == at::kFloat || dtype == at::kDouble || dtype == at::kBFloat16) &&
         mask.size(1) == 1 && keys.size(3) % lanes == 0 && values.size(3) % lanes == 0;
}

at::Tensor mix(const at::Tensor& queries, const at::Tensor& keys, const at::Tensor& values,
               const at::Tensor& mask, double scale) {
  if (!fits(queries, keys, values, mask)) {
    const bool is_grouped = queries.size(1) != keys.size(1);
    const auto mixed =
        at::scaled_dot_product_attention(queries, keys, values, mask, 0, false, scale, is_grouped);
    return mixed.transpose(1, 2).contiguous();
  }
  const auto small = static_cast<float>(scale);
  switch (queries.scalar_type()) {
    case at::kDouble:
      return by_type<double>(queries, keys, values, mask, scale);
    case at::kBFloat16:
      return by_type<Half>(queries, keys, values, mask, small);
    default:
      return by_type<float>(queries, keys, values, mask, small);
  }
}

}  // namespace

TORCH_LIBRARY_IMPL(jakiro, CPU, library) {
  library.impl("mix", &mix);
}
