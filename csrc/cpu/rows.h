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

// Pairs of rows, each `stride` apart.
struct RowPairs {
    const float *a, *b;
    int64_t a_stride, b_stride;
    const bool* valid;
    int64_t n, dim;
};

// The sum of |a[i] - b[i]|^2 over the valid rows, and their number. Writes a[i] + (b[i] - a[i]), the
// value of a straight-through estimate, of all rows to `through` unless that is null.
struct SquaredDifference {
    double sum;
    int64_t rows;
};
SquaredDifference squared_difference(const RowPairs& pairs, float* through, int threads);

// The gradients that pull the rows of pairs together: a_slope[i] = a_factor (a[i] - b[i]) where valid,
// plus passing[i], rows `passing_stride` apart, everywhere; b_slope[i] = b_factor (b[i] - a[i]) where
// valid. What is null is not written or not added.
void pull_slopes(const RowPairs& pairs, float a_factor, float b_factor, const float* passing,
                 int64_t passing_stride, float* a_slope, float* b_slope, int threads);

// Adds to hits[index[i]], of k, where counted; returns how many counted indices are negative.
// Throws std::out_of_range if an index is not below k.
int64_t count_codes(const int64_t* index, const bool* counted, int64_t n, int64_t k, int64_t* hits);

// A step of exponential moving averages over k codes: counts and totals move to count and total by
// `weight`, and codes that received rows to their ratio. A total that is not finite counts as none;
// a ratio that is not, moves no code.
void ema_step(const float* count, const float* total, float weight, int64_t k, int64_t dim,
              float* counts, float* totals, float* codes, int threads);

}  // namespace vqkern
