// SPDX-License-Identifier: Apache-2.0
// What the kernels share: vectors as wide as the processor's, threads that help each other, and checks of tensors.

#pragma once

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
constexpr int LANES = 16;        // output channels of a block of quantized weights, of whatever width vectors are
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

#define TRY(call) \
  if (AOTITorchError error = (call)) return error

// Fails where a tensor's last dimensions, all but so many of the first, do not lie as if they were all of it.
inline AOTITorchError laid_out(AtenTensorHandle tensor, int64_t first = 0) {
  int64_t dims, *sizes, *strides, expected = 1;
  TRY(aoti_torch_get_dim(tensor, &dims));
  TRY(aoti_torch_get_sizes(tensor, &sizes));
  TRY(aoti_torch_get_strides(tensor, &strides));
  for (int64_t dim = dims - 1; dim >= first; expected *= sizes[dim--])
    if (sizes[dim] != 1 && strides[dim] != expected) return AOTI_TORCH_FAILURE;
  return AOTI_TORCH_SUCCESS;
}

}  // namespace
