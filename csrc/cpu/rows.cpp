#include "rows.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

#include "row_blocks.h"

namespace vqkern {
namespace {

// The largest magnitude of a row; NaN if the row has NaN or infinity.
float largest_magnitude(const float* row, int64_t dim) {
    float largest[kChains] = {}, not_finite[kChains] = {};
    int64_t d = 0;
    for (; d + kChains <= dim; d += kChains) {
        for (int64_t l = 0; l < kChains; ++l) {
            const float x = row[d + l];
            largest[l] = std::fabs(x) > largest[l] ? std::fabs(x) : largest[l];
            not_finite[l] += x * 0.0f;  // NaN of NaN and of infinity
        }
    }
    for (; d < dim; ++d) {
        largest[0] = std::max(largest[0], std::fabs(row[d]));
        not_finite[0] += row[d] * 0.0f;
    }
    for (int64_t l = 1; l < kChains; ++l) {
        largest[0] = std::max(largest[0], largest[l]);
        not_finite[0] += not_finite[l];
    }
    return largest[0] + not_finite[0];
}

float inner(const float* a, const float* b, int64_t dim) {
    return sum_in_chains(dim, [a, b](int64_t d) { return a[d] * b[d]; });
}

}  // namespace

int64_t first_outside(const int64_t* index, int64_t n, int64_t low, int64_t high) {
    for (int64_t begin = 0; begin < n; begin += kBlockRows) {
        const int64_t end = std::min(n, begin + kBlockRows);
        bool outside = false;
        for (int64_t i = begin; i < end; ++i) outside |= (index[i] < low) | (index[i] > high);
        for (int64_t i = begin; outside && i < end; ++i) {
            if (index[i] < low || index[i] > high) return i;
        }
    }
    return -1;
}

void take_rows(const float* codes, const int64_t* index, int64_t n, int64_t dim, float* out,
               int threads) {
    each_block(n, threads, [&](int64_t, int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
            float* row = out + i * dim;
            if (index[i] >= 0) {
                std::copy_n(codes + index[i] * dim, dim, row);
            } else {
                std::fill_n(row, dim, std::numeric_limits<float>::quiet_NaN());
            }
        }
    });
}

void join_digits(const int64_t* digits, const int64_t* bases, int64_t n, int64_t m, int64_t* joint,
                 int threads) {
    each_block(n, threads, [&](int64_t, int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
            int64_t sum = 0, signs = 0;
            for (int64_t j = 0; j < m; ++j) {
                sum += digits[i * m + j] * bases[j];
                signs |= digits[i * m + j];
            }
            joint[i] = signs < 0 ? -1 : sum;
        }
    });
}

void split_digits(const int64_t* joint, const int64_t* sizes, int64_t n, int64_t m, int64_t* digits,
                  int threads) {
    each_block(n, threads, [&](int64_t, int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
            int64_t* out = digits + i * m;
            if (joint[i] < 0) {
                std::fill_n(out, m, int64_t{-1});
                continue;
            }
            uint64_t rest = static_cast<uint64_t>(joint[i]);
            for (int64_t j = 0; j < m; ++j) {
                const uint64_t size = static_cast<uint64_t>(sizes[j]);
                if ((size & (size - 1)) == 0) {  // a division takes twenty times as long
                    out[j] = static_cast<int64_t>(rest & (size - 1));
                    rest >>= __builtin_ctzll(size);
                } else {
                    out[j] = static_cast<int64_t>(rest % size);
                    rest /= size;
                }
            }
        }
    });
}

void unit_rows(const float* rows, int64_t n, int64_t dim, float* unit, float* largest, float* norm,
               int threads) {
    each_block(n, threads, [&](int64_t, int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
            const float* row = rows + i * dim;
            float* out = unit + i * dim;
            const float scale = largest_magnitude(row, dim);
            largest[i] = norm[i] = 1.0f;
            if (!std::isfinite(scale) || scale == 0.0f) {
                std::fill_n(out, dim,
                            scale == 0.0f ? 0.0f : std::numeric_limits<float>::quiet_NaN());
                continue;
            }
            for (int64_t d = 0; d < dim; ++d) out[d] = row[d] / scale;
            const float length = std::sqrt(inner(out, out, dim));
            for (int64_t d = 0; d < dim; ++d) out[d] /= length;
            largest[i] = scale;
            norm[i] = length;
        }
    });
}

void unit_rows_slope(const float* grad, const float* unit, const float* largest, const float* norm,
                     int64_t n, int64_t dim, float* slope, int threads) {
    each_block(n, threads, [&](int64_t, int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
            const float *g = grad + i * dim, *u = unit + i * dim;
            float* out = slope + i * dim;
            if (!(largest_magnitude(u, dim) > 0.0f)) {  // no direction, whatever comes in
                std::fill_n(out, dim, 0.0f);
                continue;
            }
            const float along = inner(g, u, dim);
            for (int64_t d = 0; d < dim; ++d) out[d] = (g[d] - along * u[d]) / norm[i] / largest[i];
        }
    });
}

SquaredDifference squared_difference(const RowPairs& pairs, float* through, int threads) {
    std::vector<SquaredDifference> parts(row_blocks(pairs.n));
    each_block(pairs.n, threads, [&](int64_t block, int64_t begin, int64_t end) {
        double sum = 0.0;
        int64_t counted = 0;
        for (int64_t i = begin; i < end; ++i) {
            const float *a = pairs.a + i * pairs.a_stride, *b = pairs.b + i * pairs.b_stride;
            if (through != nullptr) {
                float* out = through + i * pairs.dim;
                for (int64_t d = 0; d < pairs.dim; ++d) out[d] = a[d] + (b[d] - a[d]);
            }
            if (!pairs.valid[i]) continue;
            ++counted;
            sum += sum_in_chains(pairs.dim, [a, b](int64_t d) { return (a[d] - b[d]) * (a[d] - b[d]); });
        }
        parts[block] = {sum, counted};
    });
    SquaredDifference all = {0.0, 0};
    for (const SquaredDifference& part : parts) {
        all.sum += part.sum;
        all.rows += part.rows;
    }
    return all;
}

void pull_slopes(const RowPairs& pairs, float a_factor, float b_factor, const float* passing,
                 int64_t passing_stride, float* a_slope, float* b_slope, int threads) {
    const int64_t dim = pairs.dim;
    each_block(pairs.n, threads, [&](int64_t, int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
            const float *a = pairs.a + i * pairs.a_stride, *b = pairs.b + i * pairs.b_stride;
            const bool valid = pairs.valid[i];
            if (a_slope != nullptr) {
                float* out = a_slope + i * dim;
                const float* passed = passing == nullptr ? nullptr : passing + i * passing_stride;
                if (valid && passed != nullptr) {
                    for (int64_t d = 0; d < dim; ++d) out[d] = passed[d] + a_factor * (a[d] - b[d]);
                } else if (valid) {
                    for (int64_t d = 0; d < dim; ++d) out[d] = a_factor * (a[d] - b[d]);
                } else if (passed != nullptr) {
                    std::copy_n(passed, dim, out);
                } else {
                    std::fill_n(out, dim, 0.0f);
                }
            }
            if (b_slope != nullptr) {
                float* out = b_slope + i * dim;
                if (valid) {
                    for (int64_t d = 0; d < dim; ++d) out[d] = b_factor * (b[d] - a[d]);
                } else {
                    std::fill_n(out, dim, 0.0f);
                }
            }
        }
    });
}

int64_t count_codes(const int64_t* index, const bool* counted, int64_t n, int64_t k, int64_t* hits) {
    for (int64_t i = 0; i < n; ++i) {
        if (index[i] < k) continue;
        throw std::out_of_range("count_codes: index[" + std::to_string(i) + "] is " +
                                std::to_string(index[i]) + "; it must be below " + std::to_string(k));
    }
    int64_t skipped = 0;
    for (int64_t i = 0; i < n; ++i) {
        if (index[i] >= 0) {
            hits[index[i]] += counted[i];
        } else {
            skipped += counted[i];
        }
    }
    return skipped;
}

void ema_step(const float* count, const float* total, float weight, int64_t k, int64_t dim,
              float* counts, float* totals, float* codes, int threads) {
    each_block(k, threads, [&](int64_t, int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
            const float* received = total + i * dim;
            float *own = totals + i * dim, *code = codes + i * dim;
            const bool hit = count[i] > 0.0f && std::isfinite(largest_magnitude(received, dim));
            counts[i] += weight * ((hit ? count[i] : 0.0f) - counts[i]);
            if (!hit) {
                for (int64_t d = 0; d < dim; ++d) own[d] -= weight * own[d];
                continue;
            }
            const float divisor = std::max(counts[i], std::numeric_limits<float>::min());
            float not_finite = 0.0f;
            for (int64_t d = 0; d < dim; ++d) {
                own[d] += weight * (received[d] - own[d]);
                not_finite += own[d] / divisor * 0.0f;
            }
            if (not_finite != 0.0f) continue;  // it is NaN then
            for (int64_t d = 0; d < dim; ++d) code[d] = own[d] / divisor;
        }
    });
}

}  // namespace vqkern
