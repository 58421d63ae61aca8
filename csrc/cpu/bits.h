// Quantizers of a bit a channel: signs to indices and back, and what their entropies need.
//
// Rows are float32 and contiguous unless a stride is named. Sums over rows are float64, in fixed blocks:
// no result depends on the number of threads.
#pragma once

#include <cstdint>

namespace vqkern {

// index[i]: bit m says whether rows[i][m] is positive; -1 where a row is not finite. dim is below 64.
void sign_index(const float* rows, int64_t n, int64_t dim, int64_t* index, int threads);

// values[i][m] is +-magnitude, as bit m of index[i] says; NaN throughout for a negative index.
void sign_values(const int64_t* index, float magnitude, int64_t n, int64_t dim, float* values,
                 int threads);

// Independent bits with the log-odds logits[i][0..bits), rows `stride` apart: strings[i][c] is the
// probability of the string whose bit m is (c >> m) & 1; 0 throughout where not valid.
void bit_strings(const float* logits, int64_t stride, const bool* valid, int64_t n, int64_t bits,
                 float* strings, int threads);

// slope[i][m], rows `stride` apart as logits are: the gradient to logits[i][m] of a value whose
// gradient to strings[i][c] is grad[i][c]; 0 where not valid. Overwrites grad.
void bit_strings_slope(const float* logits, int64_t stride, const bool* valid, int64_t n,
                       int64_t bits, const float* strings, float* grad, float* slope, int threads);

// The sum over valid rows of the entropies, in nats, of all their bits.
double bit_entropy(const float* logits, const bool* valid, int64_t n, int64_t dim, int threads);

}  // namespace vqkern
