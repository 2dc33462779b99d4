// SPDX-License-Identifier: Apache-2.0
// Products of few rows, which take as long as reading their weights once.
//
// Several rows of weights are read side by side, and asked for before their time: a core waits for memory at the end of
// each page. `engine/kernels.py` says what goes in and comes out.

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/c/shim.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

#if defined(__AVX512F__)
constexpr int WIDTH = 16;
#elif defined(__AVX__)
constexpr int WIDTH = 8;
#else
constexpr int WIDTH = 4;
#endif
constexpr int LANES = 16;        // output channels of a block of packed weights, of whatever width vectors are
constexpr int SIDE_BY_SIDE = 4;  // rows of weights that are read together
constexpr int TOGETHER = 4;      // rows that weights are read for
// Bytes ahead of those that are read for which memory is asked, as measured.
constexpr int AHEAD = 8192, PACKED_AHEAD = 6144;
constexpr int64_t FEWEST = 1 << 15;  // weights that are taken at a time, and worth a thread
constexpr int64_t MOST_THREADS = 256;

template <typename T, int N>
struct Vector {
  typedef T type __attribute__((vector_size(N * sizeof(T)), aligned(sizeof(T)), may_alias));
};
using Floats = Vector<float, WIDTH>::type;
using Integers = Vector<int32_t, WIDTH>::type;
using Words = Vector<uint32_t, WIDTH>::type;

struct bfloat16 {
  uint16_t bits;
};

inline float widened(float value) { return value; }
inline float widened(bfloat16 value) {
  uint32_t bits = uint32_t(value.bits) << 16;
  float result;
  std::memcpy(&result, &bits, sizeof result);
  return result;
}
inline Floats read(const float* from) { return *reinterpret_cast<const Floats*>(from); }
inline Floats read(const bfloat16* from) {
  using Halves = Vector<uint16_t, WIDTH>::type;
  using Bits = Vector<uint32_t, WIDTH>::type;
  return reinterpret_cast<Floats>(__builtin_convertvector(*reinterpret_cast<const Halves*>(from), Bits) << 16);
}
inline void put(float value, float* to) { *to = value; }
inline void put(float value, bfloat16* to) {  // to the nearest, and to even between two
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  to->bits = value != value ? 0x7fc0 : uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
inline void ask(const void* address, int ahead) { __builtin_prefetch(static_cast<const char*>(address) + ahead); }

// Calls work(first, last) for parts of [0, count) on torch's threads. Each thread has a range, and helps the others when
// it is through: cores are rarely equally fast.
template <typename Work>
AOTITorchError spread(int64_t count, int64_t weights_of_each, const Work& work) {
  uint32_t most;
  if (AOTITorchError error = torch_get_num_threads(&most)) return error;
  int64_t part = std::max<int64_t>(1, FEWEST / std::max<int64_t>(1, weights_of_each));
  int64_t threads = std::clamp<int64_t>(count / part, 1, std::min<int64_t>(most, MOST_THREADS));
  int64_t each = (count + threads - 1) / threads;
  std::atomic<int64_t> taken[MOST_THREADS] = {};
  auto thread = [&](int64_t first, int64_t last) {
    for (int64_t t = first; t < last; t++) {
      for (int64_t help = 0; help < threads; help++) {
        int64_t range = (t + help) % threads, end = std::min(count, (range + 1) * each), begin;
        while ((begin = range * each + taken[range].fetch_add(part, std::memory_order_relaxed)) < end)
          work(begin, std::min(end, begin + part));
      }
    }
  };
  auto call = [](int64_t first, int64_t last, void* run) { (*static_cast<decltype(thread)*>(run))(first, last); };
  return torch_parallel_for(0, threads, 1, call, &thread);
}

// Weights [O, I] and rows x [R, I], both as long as `inputs`; results [R, O].
template <typename T>
struct Dense {
  const T* weight;
  const float* x;
  T* result;
  int64_t rows, inputs, outputs;

  template <int S, int R>
  void tile(int64_t output, int64_t row) const {
    Floats sums[S][R] = {};
    const T* w = weight + output * inputs;
    const float* in = x + row * inputs;
    int64_t i = 0;
    for (; i + WIDTH <= inputs; i += WIDTH) {
      for (int s = 0; s < S; s++) {
        ask(w + s * inputs + i, AHEAD);
        Floats weights = read(w + s * inputs + i);
        for (int r = 0; r < R; r++) sums[s][r] += weights * read(in + r * inputs + i);
      }
    }
    for (int s = 0; s < S; s++) {
      for (int r = 0; r < R; r++) {
        float sum = 0;
        for (int l = 0; l < WIDTH; l++) sum += sums[s][r][l];
        for (int64_t rest = i; rest < inputs; rest++) sum += widened(w[s * inputs + rest]) * in[r * inputs + rest];
        put(sum, result + (row + r) * outputs + output + s);
      }
    }
  }

  template <int S, int R = TOGETHER>
  void all_rows(int64_t output, int64_t row = 0) const {
    for (; row + R <= rows; row += R) tile<S, R>(output, row);
    if constexpr (R > 1) all_rows<S, R / 2>(output, row);
  }

  void operator()(int64_t first, int64_t last) const {
    for (int64_t tile = first; tile < last; tile++) {
      int64_t output = tile * SIDE_BY_SIDE;
      if (output + SIDE_BY_SIDE <= outputs) {
        all_rows<SIDE_BY_SIDE>(output);
      } else {
        for (; output < outputs; output++) all_rows<1>(output);
      }
    }
  }
};

// Packed weights: words [B, G, L, 16] of 32 / BITS inputs, and steps and smallest weights [B, G, 2, 16].
template <int BITS, typename T>
struct Packed {
  static constexpr int PER_WORD = 32 / BITS;
  const uint32_t* words;
  const float* scales;
  const float* x;     // [R, G L PER_WORD], times what undoes the place of an integer in its word
  const float* sums;  // [R, G] of the inputs of a group
  T* result;
  int64_t rows, groups, length, outputs;

  template <int R>
  void block(int64_t block, int64_t row) const {
    constexpr int PARTS = LANES / WIDTH;
    constexpr int CHAINS = std::clamp(8 / (R * PARTS), 1, 4);  // of sums that do not wait for one another
    constexpr uint32_t mask = (1u << BITS) - 1;
    int64_t inputs = groups * length * PER_WORD;
    const uint32_t* w = words + block * groups * length * LANES;
    const float* kept = scales + block * groups * 2 * LANES;
    const float* in = x + row * inputs;
    Floats totals[R][PARTS] = {};
    for (int64_t g = 0; g < groups; g++, kept += 2 * LANES) {
      ask(kept, PACKED_AHEAD);
      ask(kept + LANES, PACKED_AHEAD);
      Floats chains[R][PARTS][CHAINS] = {};
      for (int64_t l = 0; l < length; l++, w += LANES, in += PER_WORD) {
        ask(w, PACKED_AHEAD);
        for (int p = 0; p < PARTS; p++) {
          Words word = *reinterpret_cast<const Words*>(w + p * WIDTH);
          for (int i = 0; i < PER_WORD; i++) {
            Words integers = i == PER_WORD - 1 ? word >> (32 - BITS) : word & (mask << (BITS * i));
            Floats weights = __builtin_convertvector(reinterpret_cast<Integers>(integers), Floats);
            for (int r = 0; r < R; r++) chains[r][p][i % CHAINS] += weights * in[r * inputs + i];
          }
        }
      }
      for (int p = 0; p < PARTS; p++) {
        Floats step = read(kept + p * WIDTH), least = read(kept + LANES + p * WIDTH);
        for (int r = 0; r < R; r++) {
          for (int c = 1; c < CHAINS; c++) chains[r][p][0] += chains[r][p][c];
          totals[r][p] += chains[r][p][0] * step + least * sums[(row + r) * groups + g];
        }
      }
    }
    int64_t count = std::min<int64_t>(LANES, outputs - block * LANES);
    for (int r = 0; r < R; r++)
      for (int64_t o = 0; o < count; o++)
        put(totals[r][o / WIDTH][o % WIDTH], result + (row + r) * outputs + block * LANES + o);
  }

  template <int R = TOGETHER>
  void all_rows(int64_t of_block, int64_t row = 0) const {
    for (; row + R <= rows; row += R) block<R>(of_block, row);
    if constexpr (R > 1) all_rows<R / 2>(of_block, row);
  }

  void operator()(int64_t first, int64_t last) const {
    for (int64_t b = first; b < last; b++) all_rows(b);
  }
};

template <typename T>
AOTITorchError linear(const void* x, const void* weight, void* result, int64_t rows, int64_t inputs, int64_t outputs) {
  std::vector<float> in(rows * inputs);
  for (int64_t i = 0; i < rows * inputs; i++) in[i] = widened(static_cast<const T*>(x)[i]);
  Dense<T> dense{static_cast<const T*>(weight), in.data(), static_cast<T*>(result), rows, inputs, outputs};
  return spread((outputs + SIDE_BY_SIDE - 1) / SIDE_BY_SIDE, SIDE_BY_SIDE * inputs, dense);
}

template <int BITS, typename T>
AOTITorchError packed(const void* x, const void* words, const void* scales, void* result, int64_t rows, int64_t groups,
                      int64_t length, int64_t outputs) {
  constexpr int per_word = 32 / BITS;
  int64_t of_group = length * per_word, inputs = groups * of_group;
  std::vector<float> in(rows * inputs), sums(rows * groups);
  for (int64_t g = 0; g < rows * groups; g++) {
    const T* from = static_cast<const T*>(x) + g * of_group;
    float* to = in.data() + g * of_group;
    float of_places[per_word] = {};
    for (int64_t i = 0; i < of_group; i += per_word) {
      for (int place = 0; place < per_word; place++) {
        float value = widened(from[i + place]);
        of_places[place] += value;
        to[i + place] = place < per_word - 1 ? value / float(1u << (BITS * place)) : value;
      }
    }
    for (float sum : of_places) sums[g] += sum;
  }
  Packed<BITS, T> packed{static_cast<const uint32_t*>(words), static_cast<const float*>(scales), in.data(), sums.data(),
                         static_cast<T*>(result), rows, groups, length, outputs};
  return spread((outputs + LANES - 1) / LANES, LANES * inputs, packed);
}

}  // namespace

extern "C" {

AOTITorchError ipu_linear(const void* x, const void* weight, void* result, int64_t is_bfloat16, int64_t rows,
                          int64_t inputs, int64_t outputs) {
  return (is_bfloat16 ? linear<bfloat16> : linear<float>)(x, weight, result, rows, inputs, outputs);
}

AOTITorchError ipu_packed_linear(const void* x, const void* words, const void* scales, void* result, int64_t is_bfloat16,
                                 int64_t bits, int64_t rows, int64_t groups, int64_t length, int64_t outputs) {
  auto chosen = bits == 8 ? (is_bfloat16 ? packed<8, bfloat16> : packed<8, float>)
                          : (is_bfloat16 ? packed<4, bfloat16> : packed<4, float>);
  return chosen(x, words, scales, result, rows, groups, length, outputs);
}

// What compiled code calls, with the names and arguments of the operations.

#define TRY(call) \
  if (AOTITorchError error = (call)) return error

AOTITorchError aoti_torch_cpu_few_rows_linear(AtenTensorHandle x, AtenTensorHandle weight, AtenTensorHandle* result) {
  void *in, *w, *out;
  int64_t *of_x, *of_weight;
  int32_t dtype;
  TRY(aoti_torch_get_sizes(x, &of_x));
  TRY(aoti_torch_get_sizes(weight, &of_weight));
  TRY(aoti_torch_get_dtype(x, &dtype));
  int64_t sizes[] = {of_x[0], of_weight[0]}, strides[] = {of_weight[0], 1};
  TRY(aoti_torch_empty_strided(2, sizes, strides, dtype, aoti_torch_device_type_cpu(), 0, result));
  TRY(aoti_torch_get_data_ptr(x, &in));
  TRY(aoti_torch_get_data_ptr(weight, &w));
  TRY(aoti_torch_get_data_ptr(*result, &out));
  return ipu_linear(in, w, out, dtype == aoti_torch_dtype_bfloat16(), of_x[0], of_weight[1], of_weight[0]);
}

AOTITorchError aoti_torch_cpu_few_rows_packed_linear(AtenTensorHandle x, AtenTensorHandle words,
                                                     AtenTensorHandle scales, int64_t bits, int64_t outputs,
                                                     AtenTensorHandle* result) {
  void *in, *w, *kept, *out;
  int64_t *of_x, *of_words;
  int32_t dtype;
  TRY(aoti_torch_get_sizes(x, &of_x));
  TRY(aoti_torch_get_sizes(words, &of_words));
  TRY(aoti_torch_get_dtype(x, &dtype));
  int64_t sizes[] = {of_x[0], outputs}, strides[] = {outputs, 1};
  TRY(aoti_torch_empty_strided(2, sizes, strides, dtype, aoti_torch_device_type_cpu(), 0, result));
  TRY(aoti_torch_get_data_ptr(x, &in));
  TRY(aoti_torch_get_data_ptr(words, &w));
  TRY(aoti_torch_get_data_ptr(scales, &kept));
  TRY(aoti_torch_get_data_ptr(*result, &out));
  return ipu_packed_linear(in, w, kept, out, dtype == aoti_torch_dtype_bfloat16(), bits, of_x[0], of_words[1],
                           of_words[2], outputs);
}
}
