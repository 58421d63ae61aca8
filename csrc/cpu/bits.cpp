#include "bits.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "row_blocks.h"

namespace vqkern {
namespace {

struct Odds {
    float zero, one;  // probabilities of either bit
};

Odds odds(float logit) {
    const float t = std::exp(-std::fabs(logit));
    const float likely = 1.0f / (1.0f + t), unlikely = t / (1.0f + t);
    return logit > 0 ? Odds{unlikely, likely} : Odds{likely, unlikely};
}

}  // namespace

void sign_index(const float* rows, int64_t n, int64_t dim, int64_t* index, int threads) {
    each_block(n, threads, [&](int64_t, int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
            const float* row = rows + i * dim;
            float not_finite = 0.0f;  // x - x is 0 for finite x and NaN for the rest
            uint64_t bits = 0;
            for (int64_t m = 0; m < dim; ++m) {
                not_finite += row[m] - row[m];
                bits |= static_cast<uint64_t>(row[m] > 0.0f) << m;
            }
            index[i] = not_finite == 0.0f ? static_cast<int64_t>(bits) : -1;
        }
    });
}

void sign_values(const int64_t* index, float magnitude, int64_t n, int64_t dim, float* values,
                 int threads) {
    each_block(n, threads, [&](int64_t, int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
            float* row = values + i * dim;
            if (index[i] < 0) {
                std::fill_n(row, dim, std::numeric_limits<float>::quiet_NaN());
                continue;
            }
            for (int64_t m = 0; m < dim; ++m) row[m] = index[i] >> m & 1 ? magnitude : -magnitude;
        }
    });
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
                float zeros[kChains] = {}, ones[kChains] = {};
                int64_t c = 0;
                for (; c + kChains <= half; c += kChains) {
                    for (int64_t l = 0; l < kChains; ++l) {
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
                for (int64_t l = 0; l < kChains; ++l) {
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
    std::vector<double> parts(row_blocks(n));
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

}  // namespace vqkern
