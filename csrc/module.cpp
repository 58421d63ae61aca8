// The Python binding: raw pointers, shapes and thread counts in, nothing that knows a framework.
#include <pybind11/pybind11.h>

#include <algorithm>
#include <stdexcept>
#include <string>
#include <vector>

#include "cpu/bits.h"
#include "cpu/code_sums.h"
#include "cpu/cpu.h"
#include "cpu/gaussian_w2.h"
#include "cpu/moments.h"
#include "cpu/nearest_code.h"
#include "cpu/rows.h"
#include "cpu/squared_mmd.h"

namespace py = pybind11;

namespace {

template <typename T>
T* pointer(uintptr_t address) {
    return reinterpret_cast<T*>(address);
}

const vqkern::CpuKernels& require_kernels(const std::string& name) {
    const vqkern::CpuKernels* kernels = vqkern::find_kernels(name.c_str());
    if (kernels == nullptr) throw std::invalid_argument("this CPU cannot run kernel " + name);
    return *kernels;
}

py::dict nearest_code(uintptr_t z, uintptr_t codes, int64_t n, int64_t k, int64_t dim,
                      uintptr_t index, uintptr_t distance, bool cosine, bool float64, int threads,
                      const std::string& kernel) {
    const vqkern::CpuKernels& kernels = require_kernels(kernel);
    vqkern::SearchCounts counts;
    const auto search = [&](auto type) {
        using T = decltype(type);
        return vqkern::nearest_code(pointer<const T>(z), pointer<const T>(codes), n, k, dim, cosine,
                                    pointer<int64_t>(index), pointer<T>(distance), threads,
                                    kernels.search);
    };
    {
        py::gil_scoped_release release;
        counts = float64 ? search(double()) : search(float());
    }
    py::dict result;
    result["certified"] = counts.certified;
    result["candidates"] = counts.candidates;
    result["scanned"] = counts.scanned;
    result["scores"] = counts.scores;
    result["invalid"] = counts.invalid;
    return result;
}

void code_sums(uintptr_t z, uintptr_t index, int64_t n, int64_t k, int64_t dim, uintptr_t count,
               uintptr_t total, int threads) {
    py::gil_scoped_release release;
    vqkern::code_sums(pointer<const float>(z), pointer<const int64_t>(index), n, k, dim,
                      pointer<int64_t>(count), pointer<float>(total), threads);
}

py::tuple squared_mmd(uintptr_t x, uintptr_t y, int64_t n, int64_t m, int64_t dim,
                      uintptr_t bandwidths, int num_bandwidths, bool unbiased, uintptr_t x_grad,
                      uintptr_t y_grad, bool float64, int threads, const std::string& kernel) {
    const vqkern::CpuKernels& kernels = require_kernels(kernel);
    vqkern::MmdResult result;
    const auto run = [&](auto type) {
        using T = decltype(type);
        return vqkern::squared_mmd(pointer<const T>(x), pointer<const T>(y), n, m, dim,
                                   pointer<const double>(bandwidths), num_bandwidths, unbiased,
                                   pointer<T>(x_grad), pointer<T>(y_grad), threads,
                                   *kernels.kernel_sums);
    };
    {
        py::gil_scoped_release release;
        result = float64 ? run(double()) : run(float());
    }
    return py::make_tuple(result.value, result.wide);
}

void moments(uintptr_t x, uintptr_t valid, int64_t batch, int64_t n, int64_t dim, uintptr_t count,
             uintptr_t mean, uintptr_t covariance, int threads, const std::string& kernel) {
    const vqkern::CpuKernels& kernels = require_kernels(kernel);
    py::gil_scoped_release release;
    vqkern::moments({{pointer<const float>(x), pointer<const bool>(valid), batch, n,
                      pointer<double>(count), pointer<double>(mean), pointer<double>(covariance)}},
                    dim, threads, *kernels.moments);
}

void pull_back(uintptr_t x, uintptr_t valid, int64_t batch, int64_t n, int64_t dim, uintptr_t pull,
               uintptr_t factor, bool float64, uintptr_t out, int threads,
               const std::string& kernel) {
    const vqkern::CpuKernels& kernels = require_kernels(kernel);
    py::gil_scoped_release release;
    std::vector<double> factors(batch);
    if (float64) {
        std::copy_n(pointer<const double>(factor), batch, factors.data());
    } else {
        std::copy_n(pointer<const float>(factor), batch, factors.data());
    }
    vqkern::pull_back(pointer<const float>(x), pointer<const bool>(valid), batch, n, dim,
                      pointer<const double>(pull), factors.data(), pointer<float>(out), threads,
                      *kernels.moments);
}

bool gaussian_w2(uintptr_t x, int64_t n, uintptr_t mean_x, uintptr_t covariance_x, uintptr_t y,
                 int64_t k, uintptr_t mean_y, uintptr_t covariance_y, int64_t batch, int64_t dim,
                 double ridge, double relative, uintptr_t value, bool float64, uintptr_t pull_x,
                 uintptr_t pull_y, int threads, const std::string& kernel) {
    const vqkern::CpuKernels& kernels = require_kernels(kernel);
    py::gil_scoped_release release;
    const auto side = [](uintptr_t points, int64_t count, uintptr_t mean, uintptr_t covariance) {
        return vqkern::GaussianSide{pointer<const float>(points), count,
                                    pointer<const double>(mean), pointer<const double>(covariance)};
    };
    std::vector<double> values(batch);
    const bool finite = vqkern::gaussian_w2(
        side(x, n, mean_x, covariance_x), side(y, k, mean_y, covariance_y), batch, dim, ridge,
        relative, values.data(), pointer<double>(pull_x), pointer<double>(pull_y), threads,
        *kernels.moments);
    if (float64) {
        std::copy_n(values.data(), batch, pointer<double>(value));
    } else {
        std::copy_n(values.data(), batch, pointer<float>(value));
    }
    return finite;
}

using Address = uintptr_t;

int64_t first_outside(Address index, int64_t n, int64_t low, int64_t high) {
    py::gil_scoped_release release;
    return vqkern::first_outside(pointer<const int64_t>(index), n, low, high);
}

void take_rows(Address codes, Address index, int64_t n, int64_t dim, Address out, int threads) {
    py::gil_scoped_release release;
    vqkern::take_rows(pointer<const float>(codes), pointer<const int64_t>(index), n, dim,
                      pointer<float>(out), threads);
}

void join_digits(Address digits, Address bases, int64_t n, int64_t m, Address joint, int threads) {
    py::gil_scoped_release release;
    vqkern::join_digits(pointer<const int64_t>(digits), pointer<const int64_t>(bases), n, m,
                        pointer<int64_t>(joint), threads);
}

void split_digits(Address joint, Address sizes, int64_t n, int64_t m, Address digits, int threads) {
    py::gil_scoped_release release;
    vqkern::split_digits(pointer<const int64_t>(joint), pointer<const int64_t>(sizes), n, m,
                         pointer<int64_t>(digits), threads);
}

void unit_rows(Address rows, int64_t n, int64_t dim, Address unit, Address largest, Address norm,
               int threads) {
    py::gil_scoped_release release;
    vqkern::unit_rows(pointer<const float>(rows), n, dim, pointer<float>(unit),
                      pointer<float>(largest), pointer<float>(norm), threads);
}

void unit_rows_slope(Address grad, Address unit, Address largest, Address norm, int64_t n,
                     int64_t dim, Address slope, int threads) {
    py::gil_scoped_release release;
    vqkern::unit_rows_slope(pointer<const float>(grad), pointer<const float>(unit),
                            pointer<const float>(largest), pointer<const float>(norm), n, dim,
                            pointer<float>(slope), threads);
}

vqkern::RowPairs row_pairs(Address a, int64_t a_stride, Address b, int64_t b_stride, Address valid,
                           int64_t n, int64_t dim) {
    return {pointer<const float>(a), pointer<const float>(b), a_stride, b_stride,
            pointer<const bool>(valid), n, dim};
}

py::tuple squared_difference(Address a, int64_t a_stride, Address b, int64_t b_stride,
                             Address valid, int64_t n, int64_t dim, Address through, int threads) {
    const vqkern::RowPairs pairs = row_pairs(a, a_stride, b, b_stride, valid, n, dim);
    vqkern::SquaredDifference result;
    {
        py::gil_scoped_release release;
        result = vqkern::squared_difference(pairs, pointer<float>(through), threads);
    }
    return py::make_tuple(result.sum, result.rows);
}

void pull_slopes(Address a, int64_t a_stride, Address b, int64_t b_stride, Address valid, int64_t n,
                 int64_t dim, float a_factor, float b_factor, Address passing,
                 int64_t passing_stride, Address a_slope, Address b_slope, int threads) {
    const vqkern::RowPairs pairs = row_pairs(a, a_stride, b, b_stride, valid, n, dim);
    py::gil_scoped_release release;
    vqkern::pull_slopes(pairs, a_factor, b_factor, pointer<const float>(passing), passing_stride,
                        pointer<float>(a_slope), pointer<float>(b_slope), threads);
}

int64_t count_codes(Address index, Address counted, int64_t n, int64_t k, Address hits) {
    py::gil_scoped_release release;
    return vqkern::count_codes(pointer<const int64_t>(index), pointer<const bool>(counted), n,
                               k, pointer<int64_t>(hits));
}

void sign_index(Address rows, int64_t n, int64_t dim, Address index, int threads) {
    py::gil_scoped_release release;
    vqkern::sign_index(pointer<const float>(rows), n, dim, pointer<int64_t>(index), threads);
}

void sign_values(Address index, float magnitude, int64_t n, int64_t dim, Address values,
                 int threads) {
    py::gil_scoped_release release;
    vqkern::sign_values(pointer<const int64_t>(index), magnitude, n, dim, pointer<float>(values),
                        threads);
}

void bit_strings(Address logits, int64_t stride, Address valid, int64_t n, int64_t bits,
                 Address strings, int threads) {
    py::gil_scoped_release release;
    vqkern::bit_strings(pointer<const float>(logits), stride, pointer<const bool>(valid), n, bits,
                        pointer<float>(strings), threads);
}

void bit_strings_slope(Address logits, int64_t stride, Address valid, int64_t n, int64_t bits,
                       Address strings, Address grad, Address slope, int threads) {
    py::gil_scoped_release release;
    vqkern::bit_strings_slope(pointer<const float>(logits), stride, pointer<const bool>(valid), n,
                              bits, pointer<const float>(strings), pointer<float>(grad),
                              pointer<float>(slope), threads);
}

double bit_entropy(Address logits, Address valid, int64_t n, int64_t dim, int threads) {
    py::gil_scoped_release release;
    return vqkern::bit_entropy(pointer<const float>(logits), pointer<const bool>(valid), n, dim,
                               threads);
}

void ema_step(Address count, Address total, float weight, int64_t k, int64_t dim, Address counts,
              Address totals, Address codes, int threads) {
    py::gil_scoped_release release;
    vqkern::ema_step(pointer<const float>(count), pointer<const float>(total), weight, k, dim,
                     pointer<float>(counts), pointer<float>(totals), pointer<float>(codes),
                     threads);
}

double fma_peak(int threads, double seconds) {
    py::gil_scoped_release release;
    return vqkern::fma_peak(*vqkern::find_kernels("")->fma_loop, threads, seconds);
}

py::list cpu_kernels() {
    py::list names;
    for (const char* name : vqkern::kernel_names()) names.append(name);
    return names;
}

}  // namespace

PYBIND11_MODULE(_native, module) {
    module.doc() = "vqkern's CPU kernels on raw pointers; use the functions of vqkern instead.";
    module.def("nearest_code", &nearest_code, py::arg("z"), py::arg("codes"), py::arg("n"),
               py::arg("k"), py::arg("dim"), py::arg("index"), py::arg("distance"),
               py::arg("cosine"), py::arg("float64"), py::arg("threads"), py::arg("kernel") = "");
    module.def("code_sums", &code_sums, py::arg("z"), py::arg("index"), py::arg("n"), py::arg("k"),
               py::arg("dim"), py::arg("count"), py::arg("total"), py::arg("threads"));
    module.def("squared_mmd", &squared_mmd, py::arg("x"), py::arg("y"), py::arg("n"), py::arg("m"),
               py::arg("dim"), py::arg("bandwidths"), py::arg("num_bandwidths"),
               py::arg("unbiased"), py::arg("x_grad"), py::arg("y_grad"), py::arg("float64"),
               py::arg("threads"), py::arg("kernel") = "");
    module.def("moments", &moments, py::arg("x"), py::arg("valid"), py::arg("batch"), py::arg("n"),
               py::arg("dim"), py::arg("count"), py::arg("mean"), py::arg("covariance"),
               py::arg("threads"), py::arg("kernel") = "");
    module.def("pull_back", &pull_back, py::arg("x"), py::arg("valid"), py::arg("batch"),
               py::arg("n"), py::arg("dim"), py::arg("pull"), py::arg("factor"),
               py::arg("float64"), py::arg("out"), py::arg("threads"), py::arg("kernel") = "");
    module.def("gaussian_w2", &gaussian_w2, py::arg("x"), py::arg("n"), py::arg("mean_x"),
               py::arg("covariance_x"), py::arg("y"), py::arg("k"), py::arg("mean_y"),
               py::arg("covariance_y"), py::arg("batch"), py::arg("dim"), py::arg("ridge"),
               py::arg("relative"), py::arg("value"), py::arg("float64"), py::arg("pull_x"),
               py::arg("pull_y"), py::arg("threads"), py::arg("kernel") = "");
    module.def("first_outside", &first_outside, py::arg("index"), py::arg("n"), py::arg("low"),
               py::arg("high"));
    module.def("take_rows", &take_rows, py::arg("codes"), py::arg("index"), py::arg("n"),
               py::arg("dim"), py::arg("out"), py::arg("threads"));
    module.def("join_digits", &join_digits, py::arg("digits"), py::arg("bases"), py::arg("n"),
               py::arg("m"), py::arg("joint"), py::arg("threads"));
    module.def("split_digits", &split_digits, py::arg("joint"), py::arg("sizes"), py::arg("n"),
               py::arg("m"), py::arg("digits"), py::arg("threads"));
    module.def("unit_rows", &unit_rows, py::arg("rows"), py::arg("n"), py::arg("dim"),
               py::arg("unit"), py::arg("largest"), py::arg("norm"), py::arg("threads"));
    module.def("unit_rows_slope", &unit_rows_slope, py::arg("grad"), py::arg("unit"),
               py::arg("largest"), py::arg("norm"), py::arg("n"), py::arg("dim"), py::arg("slope"),
               py::arg("threads"));
    module.def("squared_difference", &squared_difference, py::arg("a"), py::arg("a_stride"),
               py::arg("b"), py::arg("b_stride"), py::arg("valid"), py::arg("n"), py::arg("dim"),
               py::arg("through"), py::arg("threads"));
    module.def("pull_slopes", &pull_slopes, py::arg("a"), py::arg("a_stride"), py::arg("b"),
               py::arg("b_stride"), py::arg("valid"), py::arg("n"), py::arg("dim"),
               py::arg("a_factor"), py::arg("b_factor"), py::arg("passing"),
               py::arg("passing_stride"), py::arg("a_slope"), py::arg("b_slope"),
               py::arg("threads"));
    module.def("count_codes", &count_codes, py::arg("index"), py::arg("counted"), py::arg("n"),
               py::arg("k"), py::arg("hits"));
    module.def("sign_index", &sign_index, py::arg("rows"), py::arg("n"), py::arg("dim"),
               py::arg("index"), py::arg("threads"));
    module.def("sign_values", &sign_values, py::arg("index"), py::arg("magnitude"), py::arg("n"),
               py::arg("dim"), py::arg("values"), py::arg("threads"));
    module.def("bit_strings", &bit_strings, py::arg("logits"), py::arg("stride"), py::arg("valid"),
               py::arg("n"), py::arg("bits"), py::arg("strings"), py::arg("threads"));
    module.def("bit_strings_slope", &bit_strings_slope, py::arg("logits"), py::arg("stride"),
               py::arg("valid"), py::arg("n"), py::arg("bits"), py::arg("strings"), py::arg("grad"),
               py::arg("slope"), py::arg("threads"));
    module.def("bit_entropy", &bit_entropy, py::arg("logits"), py::arg("valid"), py::arg("n"),
               py::arg("dim"), py::arg("threads"));
    module.def("ema_step", &ema_step, py::arg("count"), py::arg("total"), py::arg("weight"),
               py::arg("k"), py::arg("dim"), py::arg("counts"), py::arg("totals"), py::arg("codes"),
               py::arg("threads"));
    module.def("fma_peak", &fma_peak, py::arg("threads"), py::arg("seconds") = 0.2,
               "GFLOP/s of float32 multiply-adds in registers.");
    module.attr("most_rotated") = vqkern::kMostRotated;
    module.def("cpu_kernels", &cpu_kernels, "Kernels this CPU can run, fastest first.");
}
