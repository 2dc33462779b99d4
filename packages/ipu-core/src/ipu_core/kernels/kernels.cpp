// SPDX-License-Identifier: Apache-2.0
// Products of few rows, which take as long as reading their weights once, and attention of one query.
//
// Several rows of weights are read side by side, and asked for before their time: a core waits for memory at the end of
// each page. `build.py` says what goes in and comes out.

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/c/shim.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#include <vector>

#if defined(__AVX512VNNI__) || (defined(__AVXVNNI__) && !defined(__AVX512F__))
#define SUM_OF_FOUR
#endif
#ifdef __AVX__
#include <immintrin.h>
#endif

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
constexpr int AHEAD = 8192, PACKED_AHEAD = 6144, KEYS_AHEAD = 2048;
constexpr int LINE = 64;  // bytes that come from memory at once
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
struct float16 {
  uint16_t bits;
};

inline float widened(float value) { return value; }
inline float widened(bfloat16 value) {
  uint32_t bits = uint32_t(value.bits) << 16;
  float result;
  std::memcpy(&result, &bits, sizeof result);
  return result;
}
inline float widened(int8_t value) { return value; }
inline Floats read(const float* from) { return *reinterpret_cast<const Floats*>(from); }
inline Floats read(const bfloat16* from) {
  using Halves = Vector<uint16_t, WIDTH>::type;
  using Bits = Vector<uint32_t, WIDTH>::type;
  return reinterpret_cast<Floats>(__builtin_convertvector(*reinterpret_cast<const Halves*>(from), Bits) << 16);
}
inline Floats read(const int8_t* from) {
  using Bytes = Vector<int8_t, WIDTH>::type;
  return __builtin_convertvector(__builtin_convertvector(*reinterpret_cast<const Bytes*>(from), Integers), Floats);
}
inline Words read(const uint32_t* from) { return *reinterpret_cast<const Words*>(from); }
inline Floats read(const float16* from) {
#if defined(__AVX512F__)
  return (Floats)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
#elif defined(__F16C__)
  return (Floats)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
#else
  using Halves = Vector<uint16_t, WIDTH>::type;
  Words bits = __builtin_convertvector(*reinterpret_cast<const Halves*>(from), Words);
  // In the place of a float32, its exponent is 112 too low.
  return reinterpret_cast<Floats>((bits & 0x8000) << 16 | (bits & 0x7fff) << 13) * 0x1p112f;
#endif
}
template <int N = WIDTH>  // the sum of a vector's numbers
inline float total(typename Vector<float, N>::type values) {
  if constexpr (N == 2) {
    return values[0] + values[1];
  } else {
    typename Vector<float, N / 2>::type halves[2];
    std::memcpy(halves, &values, sizeof halves);
    return total<N / 2>(halves[0] + halves[1]);
  }
}
inline void put(float value, float* to) { *to = value; }
inline void put(float value, bfloat16* to) {  // to the nearest, and to even between two
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  to->bits = value != value ? 0x7fc0 : uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
#ifdef SUM_OF_FOUR
// Adds the products of each word's four bytes, which have no sign, and the same four with one.
inline Integers sum_of_four(Integers sum, Words bytes, const int8_t* four) {
#ifdef __AVX512VNNI__
  // Written out: compilers take an instruction more, to read the four.
  using Four = int32_t __attribute__((may_alias, aligned(1)));
  asm("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(sum) : "v"(bytes), "m"(*reinterpret_cast<const Four*>(four)));
  return sum;
#else
  int32_t word;
  std::memcpy(&word, four, sizeof word);
  return (Integers)_mm256_dpbusd_avx_epi32((__m256i)sum, (__m256i)bytes, _mm256_set1_epi32(word));
#endif
}
#endif
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
        float sum = total(sums[s][r]);
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

// What a product with packed weights takes of its rows x [R, I], and the products with the integers of a group.
//
// Where processors have sums of products of bytes, x is three limbs of 8 bits, of a unit that each group of inputs has:
// that loses as much of the largest as float32 does, and what follows is exact. An instruction has four inputs then.
#ifdef SUM_OF_FOUR
template <int BITS>
struct Rows {
  static constexpr int LIMBS = 3, LARGEST = 127 << 16, AT_ONCE = 4;
  int64_t groups, inputs, of_group;
  std::vector<int8_t> limbs;         // [R, LIMBS, I], the lowest first
  std::vector<float> units, totals;  // [R, G], the latter of the inputs of a group

  template <typename T>
  Rows(const T* x, int64_t stride, int64_t rows, int64_t groups, int64_t of_group)
      : groups(groups),
        inputs(groups * of_group),
        of_group(of_group),
        limbs(rows * LIMBS * inputs),
        units(rows * groups),
        totals(rows * groups) {
    for (int64_t g = 0; g < rows * groups; g++) {
      const T* from = x + g / groups * stride + g % groups * of_group;
      float largest[AT_ONCE] = {}, sums[AT_ONCE] = {}, most = 0;
      for (int64_t i = 0; i < of_group; i += AT_ONCE) {
        for (int j = 0; j < AT_ONCE; j++) {
          float value = widened(from[i + j]);
          largest[j] = std::max(largest[j], std::fabs(value));
          sums[j] += value;
        }
      }
      for (int j = 0; j < AT_ONCE; j++) {
        most = std::max(most, largest[j]);
        totals[g] += sums[j];  // what is not finite shows here
      }
      units[g] = most / LARGEST;
      float scale = most > 0 ? LARGEST / most : 0;
      int8_t* to = limbs.data() + g / groups * LIMBS * inputs + g % groups * of_group;
      for (int64_t i = 0; i < of_group; i++) {
        float nearest = std::rint(widened(from[i]) * scale);
        int32_t rest = static_cast<int32_t>(std::min(std::max(-float(LARGEST), nearest), float(LARGEST)));
        for (int limb = 0; limb < LIMBS; limb++) {
          to[limb * inputs + i] = static_cast<int8_t>(rest);
          rest = (rest - static_cast<int8_t>(rest)) >> 8;
        }
      }
    }
  }

  template <int R, int V>
  void multiply(const uint32_t* words, int64_t row, int64_t group, Floats (&products)[R][V]) const {
    Integers sums[R][LIMBS][V] = {};
    const int8_t* in = limbs.data() + row * LIMBS * inputs + group * of_group;
#pragma GCC unroll 4
    for (int64_t i = 0; i < of_group; i += 32 / BITS, words += LANES) {
      ask(words, PACKED_AHEAD);
      for (int v = 0; v < V; v++) {
        Words word = read(words + v * WIDTH);
        for (int four = 0; four < 8 / BITS; four++) {
          Words bytes = BITS == 8 ? word : (word >> (4 * four) & 0x0f0f0f0f);
          for (int r = 0; r < R; r++)
            for (int limb = 0; limb < LIMBS; limb++)
              sums[r][limb][v] = sum_of_four(sums[r][limb][v], bytes, in + (r * LIMBS + limb) * inputs + i + 4 * four);
        }
      }
    }
    for (int r = 0; r < R; r++) {
      float unit = units[(row + r) * groups + group];
      for (int v = 0; v < V; v++) {
        Floats product = __builtin_convertvector(sums[r][LIMBS - 1][v], Floats);
        for (int limb = LIMBS - 2; limb >= 0; limb--)
          product = product * 256 + __builtin_convertvector(sums[r][limb][v], Floats);
        products[r][v] = product * unit;
      }
    }
  }
};
#else
template <int BITS>
struct Rows {
  static constexpr int AT_ONCE = 32 / BITS;
  int64_t groups, inputs, of_group;
  std::vector<float> values;  // [R, I], times what undoes the place of an integer in its word
  std::vector<float> totals;  // [R, G] of the inputs of a group

  static constexpr int place(int input) { return input % 4 * 8 + input / 4 * 4; }  // its lowest bit

  template <typename T>
  Rows(const T* x, int64_t stride, int64_t rows, int64_t groups, int64_t of_group)
      : groups(groups),
        inputs(groups * of_group),
        of_group(of_group),
        values(rows * inputs),
        totals(rows * groups) {
    for (int64_t g = 0; g < rows * groups; g++) {
      const T* from = x + g / groups * stride + g % groups * of_group;
      float* to = values.data() + g * of_group;
      float sums[AT_ONCE] = {};
      for (int64_t i = 0; i < of_group; i += AT_ONCE) {
        for (int j = 0; j < AT_ONCE; j++) {
          float value = widened(from[i + j]);
          sums[j] += value;
          to[i + j] = j < AT_ONCE - 1 ? value / float(1u << place(j)) : value;
        }
      }
      for (float sum : sums) totals[g] += sum;
    }
  }

  template <int R, int V>
  void multiply(const uint32_t* words, int64_t row, int64_t group, Floats (&products)[R][V]) const {
    constexpr int CHAINS = std::clamp(8 / (R * V), 1, 4);  // of sums that do not wait for one another
    constexpr uint32_t mask = (1u << BITS) - 1;
    Floats chains[R][V][CHAINS] = {};
    const float* in = values.data() + row * inputs + group * of_group;
    for (int64_t i = 0; i < of_group; i += AT_ONCE, words += LANES, in += AT_ONCE) {
      ask(words, PACKED_AHEAD);
      for (int v = 0; v < V; v++) {
        Words word = read(words + v * WIDTH);
        for (int j = 0; j < AT_ONCE; j++) {
          // The last one is shifted, for integers of 32 bits may be negative.
          Words integers = j < AT_ONCE - 1 ? word & (mask << place(j)) : word >> place(j);
          Floats weights = __builtin_convertvector(reinterpret_cast<Integers>(integers), Floats);
          for (int r = 0; r < R; r++) chains[r][v][j % CHAINS] += weights * in[r * inputs + j];
        }
      }
    }
    for (int r = 0; r < R; r++)
      for (int v = 0; v < V; v++)
        for (int c = 0; c < CHAINS; c++) products[r][v] += chains[r][v][c];
  }
};
#endif

// Packed weights [B, G, 1 + L, 16]: of each group of inputs 16 steps and 16 smallest weights, one of each output, which
// take up the first words, and L words of 32 / BITS inputs.
template <int BITS>
struct Packed {
  const uint32_t* words;
  const Rows<BITS>& x;
  float* result;
  int64_t rows, outputs;

  template <int R>
  void block(int64_t block, int64_t row) const {
    constexpr int V = LANES / WIDTH;
    int64_t of_group = (1 + x.of_group * BITS / 32) * LANES;
    const uint32_t* w = words + block * x.groups * of_group;
    Floats found[R][V] = {};
    for (int64_t g = 0; g < x.groups; g++, w += of_group) {
      ask(w, PACKED_AHEAD);
      Floats products[R][V] = {};
      x.multiply(w + LANES, row, g, products);
      for (int v = 0; v < V; v++) {
        const float16* scales = reinterpret_cast<const float16*>(w) + v * WIDTH;
        Floats step = read(scales), least = read(scales + LANES);
        for (int r = 0; r < R; r++) {
          found[r][v] += products[r][v] * step;
          found[r][v] += least * x.totals[(row + r) * x.groups + g];
        }
      }
    }
    int64_t count = std::min<int64_t>(LANES, outputs - block * LANES);
    for (int r = 0; r < R; r++)
      std::memcpy(result + (row + r) * outputs + block * LANES, found[r], count * sizeof(float));
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

// e to the power of what is not above 0.
inline Floats exponential(Floats x) {
  Floats turns = x * 1.44269504f + 0x1.8p23f;  // rounds to integers, which are the lowest bits
  Floats rest = x - (turns - 0x1.8p23f) * 0x1.63p-1f + (turns - 0x1.8p23f) * 2.12194440e-4f;  // less than half ln 2
  Floats power = rest / 5040 + 1 / 720.f;
  for (float factorial : {120.f, 24.f, 6.f, 2.f, 1.f, 1.f}) power = power * rest + 1 / factorial;
  Integers scale = (reinterpret_cast<Integers>(turns) - 0x4b400000 + 127) << 23;
  return x < -87 ? Floats{} : power * reinterpret_cast<Floats>(scale);
}

// Attention of one query of each row and head. Queries [R, H, D]; keys [R, K, P, D] and values [R, K, P, V], of which
// H / K heads share one, and scales [R, K, P] where they are integers; a mask that is added, over P; results [R, H, V].
template <typename T, typename State>
struct Attention {
  const T* queries;
  const State *keys, *values;
  const T *key_scales, *value_scales;
  const float* mask;
  T* result;
  int64_t heads, shared, places, size, of_values, query_of_row, query_of_head, mask_of_row, mask_of_head;
  float scale;

  float score(const float* query, const State* key) const {
    Floats sums = {};
    int64_t i = 0;
    for (; i + WIDTH <= size; i += WIDTH) {
      ask(key + i, KEYS_AHEAD);
      sums += read(query + i) * read(key + i);
    }
    float score = total(sums);
    for (; i < size; i++) score += query[i] * widened(key[i]);
    return score;
  }

  void operator()(int64_t first, int64_t last) const {
    const float hidden = -std::numeric_limits<float>::infinity();
    std::vector<float> query(size), mixed(of_values), weights((places + WIDTH - 1) / WIDTH * WIDTH, hidden);
    for (int64_t i = first; i < last; i++) {
      int64_t kept = i / shared * places;
      const float* shown = mask ? mask + i / heads * mask_of_row + i % heads * mask_of_head : nullptr;
      const T* given = queries + i / heads * query_of_row + i % heads * query_of_head;
      for (int64_t j = 0; j < size; j++) query[j] = widened(given[j]) * scale;
      float most = hidden;
      for (int64_t p = 0; p < places; p++) {
        weights[p] = shown ? shown[p] : 0;
        if (weights[p] == hidden) continue;  // nobody has to read it
        const char* value = reinterpret_cast<const char*>(values + (kept + p) * of_values);
        for (int64_t j = 0; j < of_values * int64_t(sizeof(State)); j += LINE) ask(value, int(j));  // for its time
        float found = score(query.data(), keys + (kept + p) * size);
        weights[p] += key_scales ? found * widened(key_scales[kept + p]) : found;
        if (!(weights[p] <= most)) most = weights[p];  // nor is what is no number below it
      }
      Floats sums = {};
      for (size_t p = 0; p < weights.size(); p += WIDTH) {
        Floats some = most == hidden ? Floats{} : exponential(read(&weights[p]) - most);
        std::memcpy(&weights[p], &some, sizeof some);
        sums += some;
      }
      float sum = total(sums), *__restrict into = mixed.data();
      std::fill(mixed.begin(), mixed.end(), 0.f);
      for (int64_t p = 0; p < places; p++) {
        if (weights[p] == 0) continue;
        float weight = value_scales ? weights[p] * widened(value_scales[kept + p]) : weights[p];
        const State* value = values + (kept + p) * of_values;
        for (int64_t j = 0; j < of_values; j++) into[j] += weight * widened(value[j]);
      }
      for (int64_t j = 0; j < of_values; j++) put(sum == 0 ? 0 : mixed[j] / sum, result + i * of_values + j);
      std::fill(weights.begin(), weights.end(), hidden);
    }
  }
};

template <typename T>
AOTITorchError linear(const void* x, int64_t stride, const void* weight, void* result, int64_t rows, int64_t inputs,
                      int64_t outputs) {
  std::vector<float> in(rows * inputs);
  for (int64_t i = 0; i < rows * inputs; i++)
    in[i] = widened(static_cast<const T*>(x)[i / inputs * stride + i % inputs]);
  Dense<T> dense{static_cast<const T*>(weight), in.data(), static_cast<T*>(result), rows, inputs, outputs};
  return spread((outputs + SIDE_BY_SIDE - 1) / SIDE_BY_SIDE, SIDE_BY_SIDE * inputs, dense);
}

template <int BITS, typename T>
AOTITorchError packed(const void* x, int64_t stride, const void* words, void* result, int64_t rows, int64_t groups,
                      int64_t of_group, int64_t outputs) {
  Rows<BITS> in(static_cast<const T*>(x), stride, rows, groups, of_group);
  std::vector<float> wide(std::is_same_v<T, float> ? 0 : rows * outputs);
  float* found = wide.empty() ? static_cast<float*>(result) : wide.data();
  Packed<BITS> packed{static_cast<const uint32_t*>(words), in, found, rows, outputs};
  AOTITorchError error = spread((outputs + LANES - 1) / LANES, LANES * groups * of_group, packed);
  for (size_t i = 0; i < wide.size(); i++) put(wide[i], static_cast<T*>(result) + i);
  return error;
}

template <typename T, typename State>
AOTITorchError attention(const void* queries, const void* keys, const void* values, const void* key_scales,
                         const void* value_scales, const float* mask, void* result, const int64_t* sizes, float scale) {
  int64_t rows = sizes[0], heads = sizes[1], kept = sizes[2], places = sizes[3], size = sizes[4], of_values = sizes[5];
  int64_t query_of_row = sizes[6], query_of_head = sizes[7], mask_rows = sizes[8], mask_heads = sizes[9];
  Attention<T, State> attention{static_cast<const T*>(queries),
                                static_cast<const State*>(keys),
                                static_cast<const State*>(values),
                                static_cast<const T*>(key_scales),
                                static_cast<const T*>(value_scales),
                                mask,
                                static_cast<T*>(result),
                                heads,
                                heads / kept,
                                places,
                                size,
                                of_values,
                                query_of_row,
                                query_of_head,
                                mask_rows > 1 ? mask_heads * places : 0,
                                mask_heads > 1 ? places : 0,
                                scale};
  return spread(rows * heads, places * (size + of_values), attention);
}

}  // namespace

extern "C" {

// Rows of x lie a stride apart.
AOTITorchError ipu_linear(const void* x, const void* weight, void* result, int64_t stride, int64_t is_bfloat16,
                          int64_t rows, int64_t inputs, int64_t outputs) {
  return (is_bfloat16 ? linear<bfloat16> : linear<float>)(x, stride, weight, result, rows, inputs, outputs);
}

// `words` [B, groups, words, 16]
AOTITorchError ipu_packed_linear(const void* x, const void* packed_weight, void* result, int64_t stride,
                                 int64_t is_bfloat16, int64_t bits, int64_t rows, int64_t groups, int64_t words,
                                 int64_t outputs) {
  auto chosen = bits == 8 ? (is_bfloat16 ? packed<8, bfloat16> : packed<8, float>)
                          : (is_bfloat16 ? packed<4, bfloat16> : packed<4, float>);
  return chosen(x, stride, packed_weight, result, rows, groups, (words - 1) * 32 / bits, outputs);
}

// `sizes`: R, H, K, P, D, V, how far rows and heads of the queries lie apart, and the first two of a mask [R or 1, H or 1,
// P]. Without scales keys and values have the queries' type.
AOTITorchError ipu_attention(const void* queries, const void* keys, const void* values, const void* key_scales,
                             const void* value_scales, const float* mask, void* result, int64_t is_bfloat16,
                             const int64_t* sizes, double scale) {
  auto chosen = key_scales ? (is_bfloat16 ? attention<bfloat16, int8_t> : attention<float, int8_t>)
                           : (is_bfloat16 ? attention<bfloat16, bfloat16> : attention<float, float>);
  return chosen(queries, keys, values, key_scales, value_scales, mask, result, sizes, float(scale));
}

// What compiled code calls, with the names and arguments of the operations.

#define TRY(call) \
  if (AOTITorchError error = (call)) return error

// Fails where a tensor's last dimensions, all but so many of the first, do not lie as if they were all of it.
static AOTITorchError laid_out(AtenTensorHandle tensor, int64_t first = 0) {
  int64_t dims, *sizes, *strides, expected = 1;
  TRY(aoti_torch_get_dim(tensor, &dims));
  TRY(aoti_torch_get_sizes(tensor, &sizes));
  TRY(aoti_torch_get_strides(tensor, &strides));
  for (int64_t dim = dims - 1; dim >= first; expected *= sizes[dim--])
    if (sizes[dim] != 1 && strides[dim] != expected) return AOTI_TORCH_FAILURE;
  return AOTI_TORCH_SUCCESS;
}

AOTITorchError aoti_torch_cpu_few_rows_linear(AtenTensorHandle x, AtenTensorHandle weight, AtenTensorHandle* result) {
  void *in, *w, *out;
  int64_t *of_x, *of_weight, *apart;
  int32_t dtype;
  TRY(laid_out(x, 1));
  TRY(laid_out(weight));
  TRY(aoti_torch_get_strides(x, &apart));
  TRY(aoti_torch_get_sizes(x, &of_x));
  TRY(aoti_torch_get_sizes(weight, &of_weight));
  TRY(aoti_torch_get_dtype(x, &dtype));
  int64_t sizes[] = {of_x[0], of_weight[0]}, strides[] = {of_weight[0], 1};
  TRY(aoti_torch_empty_strided(2, sizes, strides, dtype, aoti_torch_device_type_cpu(), 0, result));
  TRY(aoti_torch_get_data_ptr(x, &in));
  TRY(aoti_torch_get_data_ptr(weight, &w));
  TRY(aoti_torch_get_data_ptr(*result, &out));
  return ipu_linear(in, w, out, apart[0], dtype == aoti_torch_dtype_bfloat16(), of_x[0], of_weight[1], of_weight[0]);
}

AOTITorchError aoti_torch_cpu_few_rows_packed_linear(AtenTensorHandle x, AtenTensorHandle words, int64_t bits,
                                                     int64_t outputs, AtenTensorHandle* result) {
  void *in, *w, *out;
  int64_t *of_x, *of_words, *apart;
  int32_t dtype;
  TRY(laid_out(x, 1));
  TRY(laid_out(words));
  TRY(aoti_torch_get_strides(x, &apart));
  TRY(aoti_torch_get_sizes(x, &of_x));
  TRY(aoti_torch_get_sizes(words, &of_words));
  TRY(aoti_torch_get_dtype(x, &dtype));
  int64_t sizes[] = {of_x[0], outputs}, strides[] = {outputs, 1};
  TRY(aoti_torch_empty_strided(2, sizes, strides, dtype, aoti_torch_device_type_cpu(), 0, result));
  TRY(aoti_torch_get_data_ptr(x, &in));
  TRY(aoti_torch_get_data_ptr(words, &w));
  TRY(aoti_torch_get_data_ptr(*result, &out));
  return ipu_packed_linear(in, w, out, apart[0], dtype == aoti_torch_dtype_bfloat16(), bits, of_x[0], of_words[1],
                           of_words[2], outputs);
}
AOTITorchError aoti_torch_cpu_one_query_attention(AtenTensorHandle queries, AtenTensorHandle keys,
                                                  AtenTensorHandle values, AtenTensorHandle* key_scales,
                                                  AtenTensorHandle* value_scales, AtenTensorHandle* mask, double scale,
                                                  AtenTensorHandle* result) {
  void *q, *k, *v, *of_k = nullptr, *of_v = nullptr, *shown = nullptr, *out;
  int64_t *of_queries, *of_keys, *of_values, *of_mask, *apart;
  int32_t dtype;
  TRY(laid_out(queries, 2));
  for (AtenTensorHandle* each : {&keys, &values, key_scales, value_scales, mask})
    if (each) TRY(laid_out(*each));
  TRY(aoti_torch_get_strides(queries, &apart));
  TRY(aoti_torch_get_sizes(queries, &of_queries));
  TRY(aoti_torch_get_sizes(keys, &of_keys));
  TRY(aoti_torch_get_sizes(values, &of_values));
  TRY(aoti_torch_get_dtype(queries, &dtype));
  int64_t sizes[] = {of_queries[0], of_queries[1], of_keys[1], of_keys[2], of_keys[3], of_values[3],
                     apart[0], apart[1], 1, 1};
  int64_t shape[] = {sizes[0], sizes[1], sizes[5]}, strides[] = {sizes[1] * sizes[5], sizes[5], 1};
  TRY(aoti_torch_empty_strided(3, shape, strides, dtype, aoti_torch_device_type_cpu(), 0, result));
  TRY(aoti_torch_get_data_ptr(queries, &q));
  TRY(aoti_torch_get_data_ptr(keys, &k));
  TRY(aoti_torch_get_data_ptr(values, &v));
  TRY(aoti_torch_get_data_ptr(*result, &out));
  if (key_scales) TRY(aoti_torch_get_data_ptr(*key_scales, &of_k));
  if (value_scales) TRY(aoti_torch_get_data_ptr(*value_scales, &of_v));
  if (mask) {
    TRY(aoti_torch_get_data_ptr(*mask, &shown));
    TRY(aoti_torch_get_sizes(*mask, &of_mask));
    sizes[8] = of_mask[0];
    sizes[9] = of_mask[1];
  }
  return ipu_attention(q, k, v, of_k, of_v, static_cast<float*>(shown), out, dtype == aoti_torch_dtype_bfloat16(), sizes,
                       scale);
}
}
