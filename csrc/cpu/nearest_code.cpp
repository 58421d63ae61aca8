#include "nearest_code.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "repeats.h"

#ifdef VQKERN_X86
#include <xmmintrin.h>
#endif

namespace vqkern {
namespace {

// As long as there is one, subnormal numbers are what they are in this thread, which may have been told to take
// them as 0; other threads have not.
struct WithSubnormals {
#ifdef VQKERN_X86
    static constexpr unsigned kFlush = 0x8040;  // results to 0, and inputs
    WithSubnormals() { _mm_setcsr(before & ~kFlush); }
    ~WithSubnormals() { _mm_setcsr(before); }
    const unsigned before = _mm_getcsr();
#endif
};

// A float32 stand-in of a float64 vector is off by half a unit in its last place.
constexpr double kRelative = 0x1p-24;
// Float64 roundings of unit vectors and their cosines, far above any: they only cost candidates.
constexpr double kAbsolute = 0x1p-44;

template <typename T>
double largest_of(const T* x, int64_t dim) {
    double largest = 0.0;
    for (int64_t d = 0; d < dim; ++d) {
        largest = std::max(largest, std::fabs(static_cast<double>(x[d])));
    }
    return largest;
}

// A power of two that brings x near 1; 1 for 0 and what is not finite.
double scale_for(double x) {
    if (!(x > 0.0 && x <= std::numeric_limits<double>::max())) return 1.0;
    return std::ldexp(1.0, std::max(-1000, std::min(1000, -std::ilogb(x))));
}

// Float32 stand-ins: vectors times a factor each, less a common centre.
struct StandIns {
    StandIns(int64_t n, int64_t k, int64_t dim) : z(n * dim), codes(k * dim), centre(dim, 0.0) {}

    // The centre: that of some codes. A factor of NaN marks a code that is never chosen.
    template <typename T, typename Factor>
    void set_centre(const T* from, int64_t k, int64_t dim, Factor factor) {
        const int64_t stride = (k + kCentreCodes - 1) / kCentreCodes;
        int64_t count = 0;
        for (int64_t j = 0; j < k; j += stride) {
            const double f = factor(j);
            if (!std::isfinite(f) || !all_finite(from + j * dim, dim)) continue;
            for (int64_t d = 0; d < dim; ++d) centre[d] += from[j * dim + d] * f;
            count += 1;
        }
        for (double& c : centre) c /= std::max<int64_t>(count, 1);
    }

    template <typename T, typename Factor>
    void fill(const T* from, int64_t rows, int64_t dim, int threads, Factor factor, Buffer& to) {
#pragma omp parallel for num_threads(threads)
        for (int64_t j = 0; j < rows; ++j) {
            const double f = factor(j);
            for (int64_t d = 0; d < dim; ++d) {
                to.data[j * dim + d] = static_cast<float>(from[j * dim + d] * f - centre[d]);
            }
        }
    }

    static constexpr int64_t kCentreCodes = 1024;
    Buffer z, codes;
    std::vector<double> centre;
};

template <typename T>
typename Cosine<T>::Length length_of(const T* x, int64_t dim) {
    const double scale = scale_for(largest_of(x, dim));
    double squared = 0.0;
    for (int64_t d = 0; d < dim; ++d) squared += (x[d] * scale) * (x[d] * scale);
    return {scale, std::sqrt(squared)};
}

void search_l2(const std::vector<int64_t>& rows, const float* z, const float* codes, int64_t n, int64_t k,
               int64_t dim, int64_t* index, float* distance, int threads,
               const SearchKernels& kernels, SearchCounts& counts) {
    const SquaredL2<float> measure = {z, codes, dim, 1.0, 1.0, kernels.squared_distance};
    const Screened screened = {z, codes, n, k, dim};
    search_kinds(rows, measure, screened, kernels, index, distance, threads, counts);
}

void search_l2(const std::vector<int64_t>& rows, const double* z, const double* codes, int64_t n, int64_t k,
               int64_t dim, int64_t* index, double* distance, int threads,
               const SearchKernels& kernels, SearchCounts& counts) {
    double code = 0.0, row = 0.0;
    for (int64_t j = 0; j < k; ++j) {
        if (all_finite(codes + j * dim, dim)) code = std::max(code, largest_of(codes + j * dim, dim));
    }
    for (int64_t i : rows) row = std::max(row, largest_of(z + i * dim, dim));
    // Squares must not overflow; the screens only need float32's range for the codes.
    const double scale = scale_for(std::max(code, row)), screen_scale = scale_for(code);
    const auto factor = [screen_scale](int64_t) { return screen_scale; };
    StandIns stand_ins(n, k, dim);
    stand_ins.set_centre(codes, k, dim, factor);
    stand_ins.fill(z, n, dim, threads, factor, stand_ins.z);
    stand_ins.fill(codes, k, dim, threads, factor, stand_ins.codes);
    Screened screened = {stand_ins.z.data, stand_ins.codes.data, n, k, dim, true, kRelative, 0x1p-90};
    const double unit = screen_scale / scale;
    const SquaredL2<double> measure = {z, codes, dim, scale, unit * unit, nullptr};
    search_kinds(rows, measure, screened, kernels, index, distance, threads, counts);
}

template <typename T>
void search_cosine(std::vector<int64_t> rows, const T* z, const T* codes, int64_t n, int64_t k,
                   int64_t dim, int64_t* index, T* distance, int threads,
                   const SearchKernels& kernels, SearchCounts& counts) {
    Cosine<T> measure = {z, codes, dim, {}, {}};
    measure.rows.resize(n);
    measure.of_codes.resize(k);
#pragma omp parallel for num_threads(threads)
    for (int64_t i = 0; i < n; ++i) measure.rows[i] = length_of(z + i * dim, dim);
    int64_t first = k, usable = 0;  // the first finite code, and how many are not zero
#pragma omp parallel for num_threads(threads) reduction(min : first) reduction(+ : usable)
    for (int64_t j = 0; j < k; ++j) {
        measure.of_codes[j] = length_of(codes + j * dim, dim);
        if (!all_finite(codes + j * dim, dim)) continue;
        first = std::min(first, j);
        usable += measure.of_codes[j].norm > 0.0;
    }
    // Where all cosines are 0, the first code is the nearest.
    const auto undecided = [&](int64_t i) {
        if (usable > 0 && measure.rows[i].norm > 0.0) return true;
        const bool any = first < k;
        index[i] = any ? first : -1;
        distance[i] = any ? T(1) : std::numeric_limits<T>::infinity();
        counts.certified += 1;
        return false;
    };
    rows.erase(std::stable_partition(rows.begin(), rows.end(), undecided), rows.end());
    if (rows.empty()) return;
    const auto row_factor = [&](int64_t i) { return measure.rows[i].scale / measure.rows[i].norm; };
    const auto code_factor = [&](int64_t j) {
        const double norm = measure.of_codes[j].norm;
        return norm > 0.0 ? measure.of_codes[j].scale / norm : std::nan("");
    };
    StandIns stand_ins(n, k, dim);
    stand_ins.set_centre(codes, k, dim, code_factor);
    stand_ins.fill(z, n, dim, threads, row_factor, stand_ins.z);
    stand_ins.fill(codes, k, dim, threads, code_factor, stand_ins.codes);
    const Screened screened = {stand_ins.z.data,  stand_ins.codes.data, n, k, dim, true, kRelative,
                               kAbsolute + dim * 0x1p-50};
    search_kinds(rows, measure, screened, kernels, index, distance, threads, counts);
}

}  // namespace

template <typename T>
SearchCounts nearest_code(const T* z, const T* codes, int64_t n, int64_t k, int64_t dim, bool cosine,
                          int64_t* index, T* distance, int threads,
                          const SearchKernels& kernels) {
    SearchCounts counts = {0, 0, 0, 0, 0};
    [[maybe_unused]] const WithSubnormals with_subnormals;
    threads = std::max(1, threads);
    std::vector<uint8_t> finite(n);
#pragma omp parallel for num_threads(threads) if (n * dim > kForOneThread)
    for (int64_t i = 0; i < n; ++i) finite[i] = all_finite(z + i * dim, dim);
    std::vector<int64_t> rows;
    rows.reserve(n);
    for (int64_t i = 0; i < n; ++i) {
        if (finite[i]) {
            rows.push_back(i);
            continue;
        }
        index[i] = -1;
        distance[i] = std::numeric_limits<T>::infinity();
        counts.invalid += 1;
    }
    if (cosine) {
        search_cosine(std::move(rows), z, codes, n, k, dim, index, distance, threads, kernels, counts);
    } else {
        search_l2(rows, z, codes, n, k, dim, index, distance, threads, kernels, counts);
    }
    return counts;
}

template SearchCounts nearest_code(const float*, const float*, int64_t, int64_t, int64_t, bool,
                                   int64_t*, float*, int, const SearchKernels&);
template SearchCounts nearest_code(const double*, const double*, int64_t, int64_t, int64_t, bool,
                                   int64_t*, double*, int,
                                   const SearchKernels&);

}  // namespace vqkern
