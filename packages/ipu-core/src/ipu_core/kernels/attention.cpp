// SPDX-License-Identifier: Apache-2.0
// Decode attention: of one query, which takes as long as reading the keys and values that its mask shows.
//
// `build.py` says what goes in and comes out.

#include "vectors.h"

namespace {

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

// `sizes`: R, H, K, P, D, V, how far rows and heads of the queries lie apart, and the first two of a mask [R or 1, H or 1,
// P]. Without scales keys and values have the queries' type.
AOTITorchError ipu_decode_attention(const void* queries, const void* keys, const void* values, const void* key_scales,
                             const void* value_scales, const float* mask, void* result, int64_t is_bfloat16,
                             const int64_t* sizes, double scale) {
  auto chosen = key_scales ? (is_bfloat16 ? attention<bfloat16, int8_t> : attention<float, int8_t>)
                           : (is_bfloat16 ? attention<bfloat16, bfloat16> : attention<float, float>);
  return chosen(queries, keys, values, key_scales, value_scales, mask, result, sizes, float(scale));
}

// What compiled code calls, with the name and arguments of the operator.

AOTITorchError aoti_torch_cpu_decode_attention(AtenTensorHandle queries, AtenTensorHandle keys,
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
  return ipu_decode_attention(q, k, v, of_k, of_v, static_cast<float*>(shown), out, dtype == aoti_torch_dtype_bfloat16(), sizes,
                       scale);
}
}
