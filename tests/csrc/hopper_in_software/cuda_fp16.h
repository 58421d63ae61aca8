// CUDA's halves in software.
#pragma once

#include "cuda_runtime.h"

using __half = _Float16;
struct __half2 { __half x, y; };

inline float __half2float(__half x) { return static_cast<float>(x); }
inline __half __double2half(double x) { return static_cast<__half>(x); }
inline __half __hneg(__half x) { return -x; }
inline __half __ushort_as_half(uint16_t x) { return in_software::back<__half>(x); }
inline float2 __half22float2(__half2 x) { return {__half2float(x.x), __half2float(x.y)}; }
