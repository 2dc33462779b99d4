// SPDX-License-Identifier: Apache-2.0
// GEMV for decode steps: products of few rows, which take as long as reading their weights once.
//
// Several rows of weights are read side by side, and prefetched: a core waits for memory at the end of each page.
// `build.py` says what goes in and comes out.

#include "vectors.h"

namespace {

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

// What a product with quantized weights takes of its rows x [R, I], and the products with the integers of a group.
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

// Quantized weights [B, G, 1 + L, 16]: of each group of inputs 16 steps and 16 smallest weights, one of each output, which
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
AOTITorchError quantized(const void* x, int64_t stride, const void* words, void* result, int64_t rows, int64_t groups,
                      int64_t of_group, int64_t outputs) {
  Rows<BITS> in(static_cast<const T*>(x), stride, rows, groups, of_group);
  std::vector<float> wide(std::is_same_v<T, float> ? 0 : rows * outputs);
  float* found = wide.empty() ? static_cast<float*>(result) : wide.data();
  Packed<BITS> quantized{static_cast<const uint32_t*>(words), in, found, rows, outputs};
  AOTITorchError error = spread((outputs + LANES - 1) / LANES, LANES * groups * of_group, quantized);
  for (size_t i = 0; i < wide.size(); i++) put(wide[i], static_cast<T*>(result) + i);
  return error;
}

}  // namespace

extern "C" {

// Rows of x lie a stride apart.
AOTITorchError ipu_gemv(const void* x, const void* weight, void* result, int64_t stride, int64_t is_bfloat16,
                          int64_t rows, int64_t inputs, int64_t outputs) {
  return (is_bfloat16 ? linear<bfloat16> : linear<float>)(x, stride, weight, result, rows, inputs, outputs);
}

// `words` [B, groups, words, 16]
AOTITorchError ipu_quantized_gemv(const void* x, const void* quantized_weight, void* result, int64_t stride,
                                 int64_t is_bfloat16, int64_t bits, int64_t rows, int64_t groups, int64_t words,
                                 int64_t outputs) {
  auto chosen = bits == 8 ? (is_bfloat16 ? quantized<8, bfloat16> : quantized<8, float>)
                          : (is_bfloat16 ? quantized<4, bfloat16> : quantized<4, float>);
  return chosen(x, stride, quantized_weight, result, rows, groups, (words - 1) * 32 / bits, outputs);
}

// What compiled code calls, with the names and arguments of the operators.

AOTITorchError aoti_torch_cpu_gemv(AtenTensorHandle x, AtenTensorHandle weight, AtenTensorHandle* result) {
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
  return ipu_gemv(in, w, out, apart[0], dtype == aoti_torch_dtype_bfloat16(), of_x[0], of_weight[1], of_weight[0]);
}

AOTITorchError aoti_torch_cpu_quantized_gemv(AtenTensorHandle x, AtenTensorHandle words, int64_t bits,
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
  return ipu_quantized_gemv(in, w, out, apart[0], dtype == aoti_torch_dtype_bfloat16(), bits, of_x[0], of_words[1],
                           of_words[2], outputs);
}
}
