#include "fma_peak.h"

#include <algorithm>
#include <chrono>

namespace vqkern {

double fma_peak(const FmaLoop& loop, int threads, double seconds) {
    using Clock = std::chrono::steady_clock;
    threads = std::max(1, threads);
    constexpr int64_t kRounds = 2000000;
    double best = 0.0;
    float sink = 0.0f;
    const auto start = Clock::now();
    // The best of many short runs: the rate of the machine when nobody else uses it.
    do {
        const auto begin = Clock::now();
#pragma omp parallel num_threads(threads) reduction(+ : sink)
        sink += loop.run(kRounds);
        const double took = std::chrono::duration<double>(Clock::now() - begin).count();
        best = std::max(best, 1e-9 * static_cast<double>(loop.flops * kRounds * threads) / took);
    } while (std::chrono::duration<double>(Clock::now() - start).count() < seconds);
    return sink == -1.0f ? 0.0 : best;
}

}  // namespace vqkern
