#include "cells.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

namespace vqkern {
namespace {

constexpr int64_t kLeastCells = 16;
constexpr int64_t kRowsPerLevel = 384;  // fewer rows do not earn what halving the codes once costs
constexpr int64_t kSampledRows = 32, kSampledCodes = 256;
// With codes at this squared distance, in variances of a halved channel, a row reaches all cells, about.
constexpr double kNear = 6.0;
constexpr double kLeastSpread = 0x1p-90, kMostSpread = 0x1p90;
constexpr int64_t kSpreadSample = 128;
constexpr int64_t kTaskSize = 2048;
constexpr int64_t kMostBuckets = 256, kKeysABucket = 8;

constexpr float kInfinity = std::numeric_limits<float>::infinity();

int levels_of(int64_t cells) {
    int levels = 0;
    while (int64_t{1} << levels < cells) levels += 1;
    return levels;
}

double squared_distance(const float* a, const float* b, int64_t dim) {
    double sum = 0.0;
    for (int64_t d = 0; d < dim; ++d) {
        const double apart = static_cast<double>(a[d]) - static_cast<double>(b[d]);
        sum += apart * apart;
    }
    return sum;
}

template <typename Keyed>
int widest_channel(const float* codes, int64_t dim, const Keyed* from, const Keyed* to) {
    const int64_t stride = (to - from + kSpreadSample - 1) / kSpreadSample;
    int widest = 0;
    double most = -1.0;
    for (int64_t d = 0; d < dim; ++d) {
        double sum = 0.0, squares = 0.0, count = 0.0;
        const double first = codes[from->code * dim + d];
        for (const Keyed* k = from; k < to; k += stride) {
            const double x = codes[k->code * dim + d] - first;
            sum += x;
            squares += x * x;
            count += 1.0;
        }
        const double spread = squares - sum * sum / count;
        if (spread > most) {
            most = spread;
            widest = static_cast<int>(d);
        }
    }
    return widest;
}

// Reorders [from, to) so that no key before `middle` is larger than one from there on. Two passes over some
// buckets of equal width take a third of the time of nth_element, which is left with one bucket.
template <typename Keyed>
void split(Keyed* from, Keyed* middle, Keyed* to) {
    const auto less = [](const Keyed& a, const Keyed& b) { return a.key < b.key; };
    const int64_t count = to - from;
    float least = from->key, most = from->key;
    for (const Keyed* k = from; k < to; ++k) {
        least = std::min(least, k->key);
        most = std::max(most, k->key);
    }
    const int buckets = static_cast<int>(std::min(count / kKeysABucket, kMostBuckets));
    // Neither may overflow: the one where keys are far apart, the other where they are next to equal.
    const float width = (most - least) / buckets, per_width = 1.0f / width;
    if (buckets < 2 || !(width < kInfinity && per_width < kInfinity)) {
        std::nth_element(from, middle, to, less);
        return;
    }
    const auto bucket = [=](const Keyed& k) {
        return std::min(static_cast<int>((k.key - least) * per_width), buckets - 1);
    };
    int64_t sizes[kMostBuckets] = {};
    for (const Keyed* k = from; k < to; ++k) sizes[bucket(*k)] += 1;
    int64_t before = 0;
    int middling = 0;
    while (before + sizes[middling] <= middle - from) before += sizes[middling++];
    // Those before the middle's bucket stay in front, the others move behind.
    const std::vector<Keyed> spare(from, to);
    Keyed* places[3] = {from, from + before, from + before + sizes[middling]};
    for (int64_t j = 0; j < count; ++j) {
        const int b = bucket(spare[j]);
        *places[(b >= middling) + (b > middling)]++ = spare[j];
    }
    Keyed* bucket_from = from + before;
    std::nth_element(bucket_from, middle, bucket_from + sizes[middling], less);
}

}  // namespace

bool Cells::pay(const Screened& screened, const std::vector<int64_t>& ids, double most_met) {
    constexpr int64_t size = kCellCodes;
    const int64_t n = static_cast<int64_t>(ids.size()), k = screened.k, dim = screened.dim;
    const int levels = levels_of(k / size);
    if (k / size < kLeastCells || k > INT32_MAX || n < kRowsPerLevel * levels) return false;
    const int64_t stride = (k + kSampledCodes - 1) / kSampledCodes;
    std::vector<const float*> codes;
    for (int64_t j = 0; j < k; j += stride) {
        const float* code = screened.codes + j * dim;
        if (all_finite(code, dim)) codes.push_back(code);
    }
    if (codes.empty()) return false;
    std::vector<double> nearest;
    for (int64_t i = 0; i < kSampledRows; ++i) {
        const float* row = screened.z + ids[i * n / kSampledRows] * dim;
        double least = kInfinity;
        for (const float* code : codes) least = std::min(least, squared_distance(row, code, dim));
        nearest.push_back(least);
    }
    std::nth_element(nearest.begin(), nearest.begin() + kSampledRows / 2, nearest.end());
    std::vector<double> variances(dim);
    for (int64_t d = 0; d < dim; ++d) {
        double sum = 0.0, squares = 0.0;
        for (const float* code : codes) sum += code[d];
        const double mean = sum / codes.size();
        for (const float* code : codes) squares += (code[d] - mean) * (code[d] - mean);
        variances[d] = squares / codes.size();
    }
    std::sort(variances.begin(), variances.end(), [](double a, double b) { return a > b; });
    const int64_t halved = std::min<int64_t>(levels, dim);
    double spread = 0.0;
    for (int64_t d = 0; d < halved; ++d) spread += variances[d] / halved;
    // Boxes are measured in float32, and their squared distances must not leave it.
    if (!(spread > kLeastSpread && spread < kMostSpread)) return false;
    // Distances shrink as the sample grows to all codes, as a ball's radius does with its volume.
    const double rest = std::pow(static_cast<double>(codes.size()) / k, 2.0 / dim);
    return nearest[kSampledRows / 2] * rest < most_met * kNear * spread;
}

Cells::Cells(const Screened& screened, int threads)
    : dim_(screened.dim),
      count_((screened.k + kCellCodes - 1) / kCellCodes),
      blocks_((count_ + kBoxes - 1) / kBoxes),
      parts_((blocks_ + kBoxes - 1) / kBoxes),
      splits_(int64_t{2} << levels_of(count_)),
      order_(screened.k),
      cells_(blocks_ * box_floats()),
      around_(parts_ * box_floats()) {
    const float* codes = screened.codes;
    std::vector<Keyed> keyed(screened.k);
    for (int64_t j = 0; j < screened.k; ++j) keyed[j].code = static_cast<int32_t>(j);
    const auto unusable = std::stable_partition(keyed.begin(), keyed.end(), [&](const Keyed& k) {
        return all_finite(codes + k.code * dim_, dim_);
    });
    const int64_t usable = unusable - keyed.begin();
#pragma omp parallel num_threads(threads)
#pragma omp single
    halve(codes, 0, 0, keyed.data(), keyed.data() + usable);
    for (int64_t j = 0; j < screened.k; ++j) order_[j] = keyed[j].code;
    bound(codes, usable, threads);
}

// All parts but the last get kCellCodes.
void Cells::halve(const float* codes, int64_t node, int32_t cell, Keyed* from, Keyed* to) {
    const int64_t parts = (to - from + kCellCodes - 1) / kCellCodes;
    if (parts <= 1) {
        splits_[node].cell = cell;
        return;
    }
    // A power of two on the left keeps blocks of cells together.
    const int32_t left = int32_t{1} << (levels_of(parts) - 1);
    Keyed* middle = from + left * kCellCodes;
    const int channel = widest_channel(codes, dim_, from, to);
    for (Keyed* k = from; k < to; ++k) k->key = codes[k->code * dim_ + channel];
    split(from, middle, to);
    splits_[node].channel = channel;
    splits_[node].value = middle->key;
#pragma omp task if (to - from > kTaskSize)
    halve(codes, 2 * node + 1, cell, from, middle);
    halve(codes, 2 * node + 2, cell + left, middle, to);
#pragma omp taskwait
}

void Cells::bound(const float* codes, int64_t usable, int threads) {
#pragma omp parallel for num_threads(threads)
    for (int64_t cell = 0; cell < blocks_ * kBoxes; ++cell) {
        float* box = box_of_cell(cell / kBoxes) + cell % kBoxes;
        for (int64_t d = 0; d < dim_; ++d, box += 2 * kBoxes) {
            box[0] = kInfinity;
            box[kBoxes] = -kInfinity;
            for (int64_t j = cell * kCellCodes; j < std::min((cell + 1) * kCellCodes, usable); ++j) {
                const float x = codes[order_[j] * dim_ + d];
                box[0] = std::min(box[0], x);
                box[kBoxes] = std::max(box[kBoxes], x);
            }
        }
    }
    for (int64_t block = 0; block < parts_ * kBoxes; ++block) {
        float* box = box_of_part(block / kBoxes) + block % kBoxes;
        for (int64_t d = 0; d < dim_; ++d, box += 2 * kBoxes) {
            box[0] = kInfinity;
            box[kBoxes] = -kInfinity;
            if (block >= blocks_) continue;
            const float* least = box_of_cell(block) + d * 2 * kBoxes;
            box[0] = *std::min_element(least, least + kBoxes);
            box[kBoxes] = *std::max_element(least + kBoxes, least + 2 * kBoxes);
        }
    }
}

std::vector<int32_t> Cells::sort_by_home(const float* z, int64_t* ids, int64_t n, int threads) const {
    std::vector<int32_t> homes(n);
#pragma omp parallel for num_threads(threads)
    for (int64_t j = 0; j < n; ++j) homes[j] = home(z + ids[j] * dim_);
    std::vector<int64_t> places(count_ + 1, 0), sorted(n);
    for (int64_t j = 0; j < n; ++j) places[homes[j] + 1] += 1;
    std::partial_sum(places.begin(), places.end(), places.begin());
    for (int64_t j = 0; j < n; ++j) sorted[places[homes[j]]++] = ids[j];
    std::copy(sorted.begin(), sorted.end(), ids);
    // Each place is now where the next cell starts.
    for (int64_t cell = 0, j = 0; cell < count_; ++cell) {
        for (; j < places[cell]; ++j) homes[j] = static_cast<int32_t>(cell);
    }
    return homes;
}

}  // namespace vqkern
