#include "code_sums.h"

#include <algorithm>
#include <vector>

namespace vqkern {

// A stable counting sort by code, then one float64 sum per code in token order: the result does not
// depend on the number of threads, and equals the float64 reference's bit for bit.
void code_sums(const float* z, const int64_t* index, int64_t n, int64_t k, int64_t dim,
               int64_t* count, float* total, int threads) {
    std::vector<int64_t> start(k + 1, 0);
    for (int64_t i = 0; i < n; ++i) {
        if (index[i] >= 0) start[index[i] + 1] += 1;
    }
    for (int64_t j = 0; j < k; ++j) {
        count[j] = start[j + 1];
        start[j + 1] += start[j];
    }
    std::vector<int64_t> order(std::max<int64_t>(start[k], 1));
    {
        std::vector<int64_t> next(start.begin(), start.end() - 1);
        for (int64_t i = 0; i < n; ++i) {
            if (index[i] >= 0) order[next[index[i]]++] = i;
        }
    }
#pragma omp parallel num_threads(std::max(1, threads))
    {
        std::vector<double> sum(dim);
#pragma omp for schedule(dynamic, 256)
        for (int64_t j = 0; j < k; ++j) {
            float* out = total + j * dim;
            if (count[j] == 0) {
                std::fill(out, out + dim, 0.0f);
                continue;
            }
            std::fill(sum.begin(), sum.end(), 0.0);
            for (int64_t t = start[j]; t < start[j + 1]; ++t) {
                const float* row = z + order[t] * dim;
                for (int64_t d = 0; d < dim; ++d) sum[d] += row[d];
            }
            for (int64_t d = 0; d < dim; ++d) out[d] = static_cast<float>(sum[d]);
        }
    }
}

}  // namespace vqkern
