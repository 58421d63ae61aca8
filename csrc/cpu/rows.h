// What a layer does with rows beside searching and adding them up, in one pass over memory each.
//
// Rows are float32, indices int64, everything contiguous unless a stride is named. Sums over rows
// are float64, in fixed blocks: no result depends on the number of threads.
#pragma once

#include <cstdint>

namespace vqkern {

// The first position whose index is below `low` or above `high`; -1 if there is none.
int64_t first_outside(const int64_t* index, int64_t n, int64_t low, int64_t high);

// out[i] = codes[index[i]], NaN where the index is negative.
void take_rows(const float* codes, const int64_t* index, int64_t n, int64_t dim, float* out,
               int threads);

// joint[i] = sum_m digits[i][m] bases[m]; -1 where any digit is negative.
void join_digits(const int64_t* digits, const int64_t* bases, int64_t n, int64_t m, int64_t* joint,
                 int threads);

// digits[i][m] = joint[i] / (sizes[0] ... sizes[m-1]) mod sizes[m]; -1 throughout for a negative
// index.
void split_digits(const int64_t* joint, const int64_t* sizes, int64_t n, int64_t m, int64_t* digits,
                  int threads);

// unit[i] = rows[i] / (largest[i] norm[i]), norm that of rows[i] / largest[i], largest the largest
// magnitude: neither overflows nor vanishes. Zero rows stay zero, rows that are not finite become
// NaN, both with factors 1.
void unit_rows(const float* rows, int64_t n, int64_t dim, float* unit, float* largest, float* norm,
               int threads);

// The gradient of unit_rows: (grad - (grad . unit) unit) / norm / largest; 0 where unit is zero or
// NaN.
void unit_rows_slope(const float* grad, const float* unit, const float* largest, const float* norm,
                     int64_t n, int64_t dim, float* slope, int threads);

// difference[i] = a[i] - b[i], 0 where not valid; returns its sum of squares and the number of
// valid rows.
struct SquaredDifference {
    double sum;
    int64_t rows;
};
SquaredDifference masked_difference(const float* a, int64_t a_stride, const float* b,
                                    int64_t b_stride, const bool* valid, int64_t n, int64_t dim,
                                    float* difference, int threads);

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

// A step of exponential moving averages over k codes: counts and totals move to count and total by
// `weight`, and codes that received rows to their ratio. A total that is not finite counts as none;
// a ratio that is not, moves no code.
void ema_step(const float* count, const float* total, float weight, int64_t k, int64_t dim,
              float* counts, float* totals, float* codes, int threads);

}  // namespace vqkern
