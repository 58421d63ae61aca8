// Rows in blocks, which the threads share: what both row passes and bit passes are made of.
#pragma once

#include <algorithm>
#include <cstdint>

namespace vqkern {

constexpr int64_t kBlockRows = 256;
constexpr int64_t kChains = 8;  // that do not wait for one another

constexpr int64_t row_blocks(int64_t n) { return (n + kBlockRows - 1) / kBlockRows; }

// body(block, begin, end) for every block of n rows.
template <typename Body>
void each_block(int64_t n, int threads, const Body& body) {
    const int64_t blocks = row_blocks(n);
#pragma omp parallel for schedule(static) num_threads(std::max(1, threads)) if (blocks > 1)
    for (int64_t block = 0; block < blocks; ++block) {
        body(block, block * kBlockRows, std::min(n, (block + 1) * kBlockRows));
    }
}

// sum of term(d) over d < dim, always in the same order; at most dim / 8 + 7 roundings.
template <typename Term>
float sum_in_chains(int64_t dim, const Term& term) {
    float chains[kChains] = {};
    int64_t d = 0;
    for (; d + kChains <= dim; d += kChains) {
        for (int64_t l = 0; l < kChains; ++l) chains[l] += term(d + l);
    }
    for (; d < dim; ++d) chains[0] += term(d);
    for (int64_t l = 1; l < kChains; ++l) chains[0] += chains[l];
    return chains[0];
}

}  // namespace vqkern
