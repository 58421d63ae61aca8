// Vectors that are there many times. Codebooks are full of them before training and after a collapse: of equal
// codes only the first can be nearest, and the others would all have to be measured to know that they tie with
// it. Equal rows, as of padding, have one answer.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "search.h"

namespace vqkern {

// The bits of a number, those of 0 for -0: such vectors are as far from everything as one another.
inline uint32_t word_of(float x) {
    const float unsigned_zero = x + 0.0f;
    uint32_t bits;
    std::memcpy(&bits, &unsigned_zero, sizeof bits);
    return bits;
}
inline uint64_t word_of(double x) {
    const double unsigned_zero = x + 0.0;
    uint64_t bits;
    std::memcpy(&bits, &unsigned_zero, sizeof bits);
    return bits;
}

// Channels of a vector as 64-bit words, the last of which may be half of one.
inline int64_t words_of(const float*, int64_t dim) { return (dim + 1) / 2; }
inline int64_t words_of(const double*, int64_t dim) { return dim; }
inline uint64_t word_at(const float* vector, int64_t dim, int64_t i) {
    const uint64_t low = word_of(vector[2 * i]);
    return 2 * i + 1 < dim ? low | static_cast<uint64_t>(word_of(vector[2 * i + 1])) << 32 : low;
}
inline uint64_t word_at(const double* vector, int64_t, int64_t i) { return word_of(vector[i]); }

template <typename T>
uint64_t hash_of(const T* vector, int64_t dim) {
    // Four chains: a product waits for the one before. The high bits come down before each: a product carries
    // nothing there by itself, and a sign is the highest.
    constexpr uint64_t kOdd = 0x9e3779b97f4a7c15;
    uint64_t chains[4] = {1, 2, 3, 4};
    for (int64_t i = 0; i < words_of(vector, dim); ++i) {
        uint64_t& chain = chains[i % 4];
        chain ^= word_at(vector, dim, i);
        chain = (chain ^ chain >> 32) * kOdd;
    }
    uint64_t all = 0;
    for (uint64_t chain : chains) all = (all ^ chain ^ chain >> 32) * kOdd;
    return all ^ all >> 32;
}

// The first of each set of equal vectors, in the order in which they are added.
template <typename T>
class Distinct {
  public:
    Distinct(const T* vectors, int64_t dim, int64_t most) : vectors_(vectors), dim_(dim) {
        size_t places = 64;
        while (places < 2 * static_cast<size_t>(most)) places *= 2;
        table_.assign(places, {0, -1});
    }

    // The place in `first` of the one that equals vector i, whose hash is given; at most `most` may differ.
    int64_t add(int64_t i, uint64_t hash) {
        const size_t mask = table_.size() - 1;
        for (size_t at = hash & mask;; at = (at + 1) & mask) {
            Place& place = table_[at];
            if (place.first < 0) {
                place = {hash, static_cast<int64_t>(first_.size())};
                first_.push_back(i);
                return place.first;
            }
            if (place.hash == hash && equal(first_[place.first], i)) return place.first;
        }
    }

    const std::vector<int64_t>& first() const { return first_; }

  private:
    struct Place {
        uint64_t hash;
        int64_t first;  // -1: empty
    };

    bool equal(int64_t i, int64_t j) const {
        const T *a = vectors_ + i * dim_, *b = vectors_ + j * dim_;
        if (std::memcmp(a, b, dim_ * sizeof(T)) == 0) return true;
        for (int64_t d = 0; d < dim_; ++d) {
            if (word_of(a[d]) != word_of(b[d])) return false;
        }
        return true;
    }

    const T* vectors_;
    int64_t dim_;
    std::vector<Place> table_;
    std::vector<int64_t> first_;
};

// Some vectors of which many are repeated: the first of each kind, and the kind of each.
struct Repeats {
    std::vector<int64_t> first, kind;
};

// Repeats are many from a 32nd of a sample, and from a 64th of all, on.
constexpr int64_t kMostSampled = 256, kLeastSampled = 48, kSampleShare = 32, kShare = 64;

// Of vectors at(0), ..., at(count - 1); empty if few are repeated, which a sample shows in a small part of the
// time of a search.
template <typename T, typename At>
Repeats find_repeats(const T* vectors, int64_t dim, int64_t count, int threads, At at) {
    const int64_t wanted = std::clamp(count / 16, kLeastSampled, kMostSampled);
    const int64_t sample = std::min(count, wanted), stride = count / sample;
    // Neighbours, and some from everywhere: copies may lie side by side, or far apart.
    Distinct<T> near(vectors, dim, sample), far(vectors, dim, sample);
    for (int64_t j = 0; j < sample; ++j) {
        near.add(at(j), hash_of(vectors + at(j) * dim, dim));
        far.add(at(j * stride), hash_of(vectors + at(j * stride) * dim, dim));
    }
    const size_t fewest = std::min(near.first().size(), far.first().size());
    const int64_t repeated = sample - static_cast<int64_t>(fewest);
    if (repeated == 0 || repeated * kSampleShare < sample) return {};
    std::vector<uint64_t> hashes(count);
#pragma omp parallel for num_threads(threads)
    for (int64_t j = 0; j < count; ++j) hashes[j] = hash_of(vectors + at(j) * dim, dim);
    Distinct<T> all(vectors, dim, count);
    Repeats found;
    found.kind.reserve(count);
    for (int64_t j = 0; j < count; ++j) found.kind.push_back(all.add(at(j), hashes[j]));
    if ((count - static_cast<int64_t>(all.first().size())) * kShare < count) return {};
    found.first = all.first();
    return found;
}

template <typename T>
std::vector<T> copied(const T* vectors, int64_t dim, const std::vector<int64_t>& which, int threads) {
    const int64_t count = static_cast<int64_t>(which.size());
    std::vector<T> copies(count * dim);
#pragma omp parallel for num_threads(threads)
    for (int64_t j = 0; j < count; ++j) std::copy_n(vectors + which[j] * dim, dim, copies.data() + j * dim);
    return copies;
}

// `search_rows`, among one of each set of equal codes where many are.
template <typename T, typename Measure>
std::vector<int64_t> search_among_kinds(const std::vector<int64_t>& rows, const Measure& measure,
                                        const Screened& screened, const SearchKernels& kernels,
                                        int64_t* index, T* distance, int threads,
                                        SearchCounts& counts) {
    const auto itself = [](int64_t j) { return j; };
    const auto search = [&](const Measure& of, const Screened& some) {
        return search_rows(rows, of, some, kernels, index, distance, threads, counts);
    };
    // Few rows are answered before the codes are looked through.
    if (static_cast<int64_t>(rows.size()) <= kFewRows) return search(measure, screened);
    const Repeats codes = find_repeats(measure.codes, screened.dim, screened.k, threads, itself);
    if (codes.first.empty()) return search(measure, screened);
    const std::vector<T> copies = copied(measure.codes, screened.dim, codes.first, threads);
    const std::vector<float> as_screened = copied(screened.codes, screened.dim, codes.first, threads);
    Screened some = screened;
    some.codes = as_screened.data();
    some.k = static_cast<int64_t>(codes.first.size());
    const std::vector<int64_t> scanned = search(measure.among(copies.data(), codes.first), some);
    for (int64_t i : rows) {
        if (index[i] >= 0) index[i] = codes.first[index[i]];
    }
    return scanned;
}

// As well, for one of each set of equal rows where many are.
template <typename T, typename Measure>
void search_kinds(const std::vector<int64_t>& rows, const Measure& measure, const Screened& screened,
                  const SearchKernels& kernels, int64_t* index, T* distance, int threads,
                  SearchCounts& counts) {
    if (rows.empty()) return;
    const int64_t n = static_cast<int64_t>(rows.size());
    const Repeats kinds = find_repeats(measure.z, screened.dim, n, threads,
                                       [&](int64_t j) { return rows[j]; });
    const std::vector<int64_t>& searched = kinds.first.empty() ? rows : kinds.first;
    std::vector<int64_t> scanned =
        search_among_kinds(searched, measure, screened, kernels, index, distance, threads, counts);
    if (kinds.first.empty()) return;
    std::sort(scanned.begin(), scanned.end());
    for (int64_t j = 0; j < n; ++j) {
        const int64_t first = kinds.first[kinds.kind[j]];
        if (rows[j] == first) continue;
        index[rows[j]] = index[first];
        distance[rows[j]] = distance[first];
        const bool by_scan = std::binary_search(scanned.begin(), scanned.end(), first);
        (by_scan ? counts.scanned : counts.certified) += 1;
    }
}

}  // namespace vqkern
