#include "rows.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

namespace vqkern {
namespace {

constexpr int64_t kRows = 256;  // of a block

template <typename Body>
void each_block(int64_t n, int threads, const Body& body) {
    const int64_t blocks = (n + kRows - 1) / kRows;
#pragma omp parallel for schedule(static) num_threads(std::max(1, threads)) if (blocks > 1)
    for (int64_t block = 0; block < blocks; ++block) {
        body(block, block * kRows, std::min(n, (block + 1) * kRows));
    }
}

constexpr int64_t kLanes = 8;  // chains that do not wait for one another

// The largest magnitude of a row; NaN if the row has NaN or infinity.
float largest_magnitude(const float* row, int64_t dim) {
    float largest[kLanes] = {}, not_finite[kLanes] = {};
    int64_t d = 0;
    for (; d + kLanes <= dim; d += kLanes) {
        for (int64_t l = 0; l < kLanes; ++l) {
            const float x = row[d + l];
            largest[l] = std::fabs(x) > largest[l] ? std::fabs(x) : largest[l];
            not_finite[l] += x * 0.0f;  // NaN of NaN and of infinity
        }
    }
    for (; d < dim; ++d) {
        largest[0] = std::max(largest[0], std::fabs(row[d]));
        not_finite[0] += row[d] * 0.0f;
    }
    for (int64_t l = 1; l < kLanes; ++l) {
        largest[0] = std::max(largest[0], largest[l]);
        not_finite[0] += not_finite[l];
    }
    return largest[0] + not_finite[0];
}

// sum of a[d] b[d], always in the same order; at most dim / 8 + 7 roundings in a row.
float inner(const float* a, const float* b, int64_t dim) {
    float lanes[kLanes] = {};
    int64_t d = 0;
    for (; d + kLanes <= dim; d += kLanes) {
        for (int64_t l = 0; l < kLanes; ++l) lanes[l] += a[d + l] * b[d + l];
    }
    for (; d < dim; ++d) lanes[0] += a[d] * b[d];
    for (int64_t l = 1; l < kLanes; ++l) lanes[0] += lanes[l];
    return lanes[0];
}

struct Odds {
    float zero, one;  // probabilities of either bit
};

Odds odds(float logit) {
    const float t = std::exp(-std::fabs(logit));
    const float likely = 1.0f / (1.0f + t), unlikely = t / (1.0f + t);
    return logit > 0 ? Odds{unlikely, likely} : Odds{likely, unlikely};
}

}  // namespace

int64_t first_outside(const int64_t* index, int64_t n, int64_t low, int64_t high) {
    for (int64_t begin = 0; begin < n; begin += kRows) {
        const int64_t end = std::min(n, begin + kRows);
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

SquaredDifference masked_difference(const float* a, int64_t a_stride, const float* b,
                                    int64_t b_stride, const bool* valid, int64_t n, int64_t dim,
                                    float* difference, int threads) {
    std::vector<SquaredDifference> parts((n + kRows - 1) / kRows);
    each_block(n, threads, [&](int64_t block, int64_t begin, int64_t end) {
        double sum = 0.0;
        int64_t counted = 0;
        for (int64_t i = begin; i < end; ++i) {
            float* out = difference + i * dim;
            if (!valid[i]) {
                std::fill_n(out, dim, 0.0f);
                continue;
            }
            ++counted;
            const float *left = a + i * a_stride, *right = b + i * b_stride;
            for (int64_t d = 0; d < dim; ++d) out[d] = left[d] - right[d];
            sum += inner(out, out, dim);
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

void bit_strings(const float* logits, int64_t stride, const bool* valid, int64_t n, int64_t bits,
                 float* strings, int threads) {
    const int64_t size = int64_t{1} << bits;
    each_block(n, threads, [&](int64_t, int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
            float* out = strings + i * size;
            if (!valid[i]) {
                std::fill_n(out, size, 0.0f);
                continue;
            }
            out[0] = 1.0f;
            for (int64_t m = 0; m < bits; ++m) {
                const Odds p = odds(logits[i * stride + m]);
                const int64_t half = int64_t{1} << m;
                for (int64_t c = 0; c < half; ++c) {
                    out[half + c] = out[c] * p.one;
                    out[c] *= p.zero;
                }
            }
        }
    });
}

void bit_strings_slope(const float* logits, int64_t stride, const bool* valid, int64_t n,
                       int64_t bits, const float* strings, float* grad, float* slope, int threads) {
    const int64_t size = int64_t{1} << bits;
    each_block(n, threads, [&](int64_t, int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
            const float* p = strings + i * size;
            float* w = grad + i * size;
            if (!valid[i]) {
                std::fill_n(slope + i * stride, bits, 0.0f);
                continue;
            }
            for (int64_t c = 0; c < size; ++c) w[c] *= p[c];
            // The strings that share all bits but the last fold onto one another, bit after bit.
            for (int64_t m = bits - 1; m >= 0; --m) {
                const int64_t half = int64_t{1} << m;
                float zeros[kLanes] = {}, ones[kLanes] = {};
                int64_t c = 0;
                for (; c + kLanes <= half; c += kLanes) {
                    for (int64_t l = 0; l < kLanes; ++l) {
                        zeros[l] += w[c + l];
                        ones[l] += w[half + c + l];
                        w[c + l] += w[half + c + l];
                    }
                }
                for (; c < half; ++c) {
                    zeros[0] += w[c];
                    ones[0] += w[half + c];
                    w[c] += w[half + c];
                }
                float zero = 0.0f, one = 0.0f;
                for (int64_t l = 0; l < kLanes; ++l) {
                    zero += zeros[l];
                    one += ones[l];
                }
                const Odds q = odds(logits[i * stride + m]);
                slope[i * stride + m] = one * q.zero - zero * q.one;
            }
        }
    });
}

double bit_entropy(const float* logits, const bool* valid, int64_t n, int64_t dim, int threads) {
    std::vector<double> parts((n + kRows - 1) / kRows);
    each_block(n, threads, [&](int64_t block, int64_t begin, int64_t end) {
        double sum = 0.0;
        for (int64_t i = begin; i < end; ++i) {
            for (int64_t d = 0; valid[i] && d < dim; ++d) {
                const float x = std::fabs(logits[i * dim + d]);
                if (x > 80.0f) continue;  // below 1e-32
                const float t = std::exp(-x);
                sum += std::log1p(t) + x * t / (1.0f + t);
            }
        }
        parts[block] = sum;
    });
    double all = 0.0;
    for (double part : parts) all += part;
    return all;
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
