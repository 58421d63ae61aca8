"""The exact decision between codes, for the Triton kernels of `nearest_code`.

|z - e|^2 of the values as given, in float64 and in channel order; where float64 cannot tell two
codes apart, the sign of the difference from error-free transformations (Knuth's two-sum, Dekker's
two-product). Kernels that call this must be launched with enable_fp_fusion=False.
"""

import triton
import triton.language as tl

SPLITTER = tl.constexpr(134217729.0)  # 2^27 + 1: splits a float64 into two halves of 26 bits
# Four float64 parts hold a sum to this fraction of its terms; a smaller difference is a tie.
# float32 inputs reach that only where the elements of a row and its codes span more than some 2^50
# and the terms cancel to the last bit.
TIE = tl.constexpr(2.0**-160)
NO_INDEX = tl.constexpr(1 << 62)  # above every code


@triton.jit
def _two_sum(a, b):
    high = a + b
    virtual = high - a
    return high, (a - (high - virtual)) + (b - virtual)


@triton.jit
def _two_product(a, b):
    # Dekker's splitting needs no fused multiply-add, which the interpreter does not have.
    high = a * b
    a_high = a * SPLITTER
    a_high = a_high - (a_high - a)
    b_high = b * SPLITTER
    b_high = b_high - (b_high - b)
    a_low = a - a_high
    b_low = b - b_high
    return high, ((a_high * b_high - high) + a_high * b_low + a_low * b_high) + a_low * b_low


@triton.jit
def _add(s0, s1, s2, s3, x):
    s0, x = _two_sum(s0, x)
    s1, x = _two_sum(s1, x)
    s2, x = _two_sum(s2, x)
    return s0, s1, s2, s3 + x


@triton.jit
def _add_product(s0, s1, s2, s3, size, a, b):
    """Add a * b to a sum of four parts, and its magnitude to `size`."""
    p, r = _two_product(a, b)
    s0, s1, s2, s3 = _add(s0, s1, s2, s3, p)
    s0, s1, s2, s3 = _add(s0, s1, s2, s3, r)
    return s0, s1, s2, s3, size + tl.abs(p)


@triton.jit
def _renormalise(s0, s1, s2, s3):
    s2, s3 = _two_sum(s2, s3)
    s1, s2 = _two_sum(s1, s2)
    s0, s1 = _two_sum(s0, s1)
    return s0, s1, s2, s3


@triton.jit
def _distances(z, codes, code, valid, D: tl.constexpr):
    """|z - e|^2 of one row and some codes, in channel order; inf for a code that is not finite."""
    total = tl.zeros(code.shape, tl.float64)
    for d in range(D):
        e = tl.load(codes + code * D + d, mask=valid, other=0.0).to(tl.float64)
        difference = tl.load(z + d).to(tl.float64) - e
        total += difference * difference
    # Squares of finite float32 cannot overflow float64, and NaN fails the comparison.
    return tl.where(valid & (total < float("inf")), total, float("inf"))


@triton.jit
def _differ(codes, champion, code, valid, D: tl.constexpr):
    """Whether a code is another vector than the champion; -0.0 equals 0.0."""
    differ = tl.zeros(code.shape, tl.int32)
    for d in range(D):
        a = tl.load(codes + champion * D + d)
        e = tl.load(codes + code * D + d, mask=valid, other=0.0)
        differ |= (e != a).to(tl.int32)
    return valid & (differ != 0)


@triton.jit
def _nearer(z, codes, champion, code, valid, D: tl.constexpr):
    """Whether |z - e|^2 < |z - c|^2 in real arithmetic, for the champion c.

    |z - c|^2 - |z - e|^2 = (e - c) . (2z - c - e): what the distances share never enters. Both
    factors are split into parts that add up to them exactly, and so are their products.
    """
    s0 = tl.zeros(code.shape, tl.float64)
    s1 = s0
    s2 = s0
    s3 = s0
    size = s0
    for d in range(D):
        c = tl.load(codes + champion * D + d).to(tl.float64)
        e = tl.load(codes + code * D + d, mask=valid, other=0.0).to(tl.float64)
        a0, a1 = _two_sum(e, -c)
        b0, b1 = _two_sum(e, c)
        b0, b2 = _two_sum(2.0 * tl.load(z + d).to(tl.float64), -b0)
        b1, b2 = _two_sum(b2, -b1)
        s0, s1, s2, s3, size = _add_product(s0, s1, s2, s3, size, a0, b0)
        s0, s1, s2, s3, size = _add_product(s0, s1, s2, s3, size, a0, b1)
        s0, s1, s2, s3, size = _add_product(s0, s1, s2, s3, size, a0, b2)
        s0, s1, s2, s3, size = _add_product(s0, s1, s2, s3, size, a1, b0)
        s0, s1, s2, s3, size = _add_product(s0, s1, s2, s3, size, a1, b1)
        s0, s1, s2, s3, size = _add_product(s0, s1, s2, s3, size, a1, b2)
    s0, s1, s2, s3 = _renormalise(s0, s1, s2, s3)
    s0, s1, s2, s3 = _renormalise(s0, s1, s2, s3)
    s0, s1, s2, s3 = _renormalise(s0, s1, s2, s3)
    return valid & (s0 > size * TIE)


@triton.jit
def challenge(z, codes, first, num_codes, best, best_key, D: tl.constexpr, CODES: tl.constexpr):
    """The nearest of `best` (-1: none yet) and CODES codes from `first` on, all above `best`."""
    code = first + tl.arange(0, CODES).to(tl.int64)
    return challenge_by(z, codes, code, code < num_codes, best, best_key, D)


@triton.jit
def challenge_by(z, codes, code, valid, best, best_key, D: tl.constexpr):
    """The nearest of `best` (-1: none yet) and the valid ones of some codes, all above `best`."""
    key = _distances(z, codes, code, valid, D)
    least = tl.minimum(tl.min(key, 0), best_key)
    # Each key is off by (D + 3) 2^-53 of itself at most: beyond this limit no code is the nearest.
    limit = least + least * (4 * (D + 3) * 2.0**-53)
    near = (key <= limit) & (key < float("inf"))
    held = (best >= 0) & (best_key <= limit)
    count = tl.sum(near.to(tl.int32), 0)
    if count > 0:
        lowest = tl.min(tl.where(near, code, NO_INDEX), 0)
        lowest_key = tl.sum(tl.where(code == lowest, key, 0.0), 0)
        best = tl.where(held, best, lowest)
        best_key = tl.where(held, best_key, lowest_key)
        near = near & (code != best)
        undecided = tl.sum(near.to(tl.int32), 0)
        if undecided > 0:
            # Duplicates are the usual tie, and the lower index has won it.
            near = _differ(codes, best, code, near, D)
            undecided = tl.sum(near.to(tl.int32), 0)
        while undecided > 0:
            near = _nearer(z, codes, best, code, near, D)
            undecided = tl.sum(near.to(tl.int32), 0)
            if undecided > 0:
                best = tl.min(tl.where(near, code, NO_INDEX), 0)
                best_key = tl.sum(tl.where(code == best, key, 0.0), 0)
                near = near & (code != best)
                undecided = tl.sum(near.to(tl.int32), 0)
    return best, best_key
