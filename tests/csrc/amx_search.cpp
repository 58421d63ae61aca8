// The search with the matrix unit's screen against the portable one, on data of several kinds: every index and
// every distance must be the same, and no row may need a scan.
#include <cmath>
#include <cstdio>
#include <random>
#include <vector>

#include "nearest_code.h"

using namespace vqkern;

int main() {
    std::mt19937 random(3);
    std::normal_distribution<float> normal;
    int wrong = 0;
    for (int test = 0; test < 200; ++test) {
        const bool large = test % 20 == 0;
        const int64_t n = 3 + random() % 100, k = large ? 5000 : 1 + random() % 700;
        const int64_t dim = large ? 256 : 20 + random() % 140;
        std::vector<float> z(n * dim), codes(k * dim);
        for (float& x : z) x = normal(random);
        for (float& x : codes) x = normal(random);
        const int kind = test % 4;
        for (std::vector<float>* values : {&z, &codes}) {
            for (float& x : *values) x = kind == 1 ? std::round(3 * x) : kind == 2 ? x + 50 : x;
        }
        for (int64_t i = 0; kind == 3 && i < n; ++i) {
            const int64_t near = random() % k;
            for (int64_t d = 0; d < dim; ++d) {
                z[i * dim + d] = codes[near * dim + d] + 1e-3f * z[i * dim + d];
            }
        }
        std::vector<int64_t> index[2] = {std::vector<int64_t>(n), std::vector<int64_t>(n)};
        std::vector<float> distance[2] = {std::vector<float>(n), std::vector<float>(n)};
        const SearchKernels kernels[2] = {
            {{&kScreenAmx}, nullptr, nullptr, kSquaredDistancePortable},
            {{&kScreenPortable}, nullptr, nullptr, kSquaredDistancePortable}};
        for (int which = 0; which < 2; ++which) {
            const SearchCounts counts =
                nearest_code(z.data(), codes.data(), n, k, dim, false, index[which].data(),
                             distance[which].data(), 1, kernels[which]);
            if (counts.certified != n) {
                std::printf("test %d: %ld of %ld rows certified\n", test, long(counts.certified), long(n));
                ++wrong;
            }
        }
        if (index[0] != index[1] || distance[0] != distance[1]) {
            std::printf("test %d: n %ld, k %ld, dim %ld differ\n", test, long(n), long(k), long(dim));
            ++wrong;
        }
    }
    std::printf("%d wrong\n", wrong);
    return wrong != 0;
}
