"""The CUDA kernels for Hopper GPUs."""

from .mutant import Mutant

CUDA = "csrc/cuda/"

MUTANTS = [
    Mutant(
        "cuda-stage-not-awaited", "hopper", CUDA + "screen.cu",
        "        barrier_wait(full + stage, phase);", "",
        "products are made of codes that have not landed",
    ),
    Mutant(
        "cuda-product-read-early", "hopper", CUDA + "screen.cu",
        "product_wait<kParts - 1>(d[part]);", "product_wait<kParts>(d[part]);",
        "scores are looked at while they are made",
    ),
    Mutant(
        "cuda-stage-released-early", "hopper", CUDA + "screen.cu",
        "barrier_init(empty + i, kWarpgroups * 4);", "barrier_init(empty + i, kWarpgroups);",
        "codes are overwritten that others still multiply",
    ),
    Mutant(
        "cuda-half-without-delta", "hopper", CUDA + "screen.cu",
        "    lower = score - delta;\n    upper = score + delta;",
        "    lower = score;\n    upper = score;",
        "groups are dropped by their computed score",
    ),
    Mutant(
        "cuda-lost-without-bound", "hopper", CUDA + "screen.cu",
        "lost = fminf(lost, bound);", "",
        "groups that found no room on a list count as ruled out",
    ),
    Mutant(
        "cuda-tie-missed", "hopper", CUDA + "decide.cu",
        "bool tied = __popc(near) > 1 || more;", "bool tied = false;",
        "float64 breaks exact ties",
    ),
    Mutant(
        "cuda-float32-decides", "hopper", CUDA + "decide.cu",
        "const float limit = least + least * (4 * (d + 3) * 0x1p-24f);",
        "const float limit = least;",
        "the code nearest in float32 is taken for the nearest",
    ),
    Mutant(
        "cuda-one-of-a-lane", "hopper", CUDA + "decide.cu",
        "__ballot_sync(kAll, seen.next <= limit)", "0",
        "a lane's second code is lost where float32 cannot tell it from its first",
    ),
    Mutant(
        "cuda-subnormal-squares", "hopper", CUDA + "decide.cu",
        "least >= kSmallest && ", "",
        "squares that float32 cannot hold decide",
    ),
    Mutant(
        "cuda-lost-forgotten", "hopper", CUDA + "decide.cu",
        "lost = lost || kept[i] > s.capacity;", "",
        "a list that ran over passes for whole",
    ),
    Mutant(
        "cuda-places-in-order", "hopper", CUDA + "screen.cuh",
        "return within / 2 * 8 + i / quarter * 2 + within % 2;", "return i;",
        "a group is not the codes that a thread holds",
    ),
]  # fmt: skip
