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

// The first of each set of vectors that are equal bit for bit, in the order in which they are added.
template <typename T>
class Distinct {
  public:
    Distinct(const T* vectors, int64_t dim, int64_t most) : vectors_(vectors), dim_(dim) {
        size_t places = 64;
        while (places < 2 * static_cast<size_t>(most)) places *= 2;
        table_.assign(places, -1);
    }

    // The place in `first` of the one that equals vector i; at most `most` may differ.
    int64_t add(int64_t i) {
        const T* vector = vectors_ + i * dim_;
        for (size_t at = hash(vector) & (table_.size() - 1);; at = (at + 1) & (table_.size() - 1)) {
            if (table_[at] < 0) {
                table_[at] = static_cast<int64_t>(first_.size());
                first_.push_back(i);
                return table_[at];
            }
            const T* other = vectors_ + first_[table_[at]] * dim_;
            if (std::memcmp(other, vector, dim_ * sizeof(T)) == 0) return table_[at];
        }
    }

    const std::vector<int64_t>& first() const { return first_; }

  private:
    size_t hash(const T* vector) const {
        // Four chains: a product waits for the one before.
        constexpr uint64_t kOdd = 0x9e3779b97f4a7c15;
        uint64_t chains[4] = {1, 2, 3, 4};
        for (int64_t d = 0; d < dim_; ++d) {
            uint64_t bits = 0;
            std::memcpy(&bits, vector + d, sizeof(T));
            chains[d % 4] = (chains[d % 4] ^ bits) * kOdd;
        }
        uint64_t all = 0;
        for (uint64_t chain : chains) all = (all ^ chain ^ chain >> 32) * kOdd;
        return all ^ all >> 32;
    }

    const T* vectors_;
    int64_t dim_;
    std::vector<int64_t> table_, first_;
};

// Some vectors of which many are repeated: the first of each kind, and the kind of each.
struct Repeats {
    std::vector<int64_t> first, kind;
};

constexpr int64_t kRepeatSample = 256, kFewRepeats = 4;

// Of vectors at(0), ..., at(count - 1); empty if few are repeated, which a sample shows in a small part of the
// time of a search.
template <typename T, typename At>
Repeats find_repeats(const T* vectors, int64_t dim, int64_t count, At at) {
    const int64_t sample = std::min(count, kRepeatSample), stride = count / sample;
    // Neighbours, and some from everywhere: copies may lie side by side, or far apart.
    Distinct<T> near(vectors, dim, sample), far(vectors, dim, sample);
    for (int64_t j = 0; j < sample; ++j) {
        near.add(at(j));
        far.add(at(j * stride));
    }
    const size_t fewest = std::min(near.first().size(), far.first().size());
    if (static_cast<int64_t>(fewest) > sample - kFewRepeats) return {};
    Distinct<T> all(vectors, dim, count);
    Repeats found;
    for (int64_t j = 0; j < count; ++j) found.kind.push_back(all.add(at(j)));
    const int64_t kinds = static_cast<int64_t>(all.first().size());
    if (kinds > count - count / 16) return {};
    found.first = all.first();
    return found;
}

template <typename T>
std::vector<T> copied(const T* vectors, int64_t dim, const std::vector<int64_t>& which) {
    std::vector<T> copies(which.size() * dim);
    for (size_t j = 0; j < which.size(); ++j) std::copy_n(vectors + which[j] * dim, dim, &copies[j * dim]);
    return copies;
}

// `search_rows`, among one of each set of equal codes where many are.
template <typename T, typename Measure>
std::vector<int64_t> search_among_kinds(const std::vector<int64_t>& rows, const Measure& measure,
                                        const Screened& screened, const SearchKernels& kernels,
                                        int64_t* index, T* distance, int threads,
                                        SearchCounts& counts) {
    const auto itself = [](int64_t j) { return j; };
    const Repeats codes = find_repeats(measure.codes, screened.dim, screened.k, itself);
    if (codes.first.empty()) {
        return search_rows(rows, measure, screened, kernels, index, distance, threads, counts);
    }
    const std::vector<T> copies = copied(measure.codes, screened.dim, codes.first);
    const std::vector<float> as_screened = copied(screened.codes, screened.dim, codes.first);
    Screened some = screened;
    some.codes = as_screened.data();
    some.k = static_cast<int64_t>(codes.first.size());
    std::vector<int64_t> scanned = search_rows(rows, measure.among(copies.data(), codes.first), some,
                                               kernels, index, distance, threads, counts);
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
    const Repeats kinds = find_repeats(measure.z, screened.dim, n, [&](int64_t j) { return rows[j]; });
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
