"""Ten thousand searches a kernel, on data made to break the bounds: run by `make soak`."""

import random

import pytest
import torch
from support import SEARCHES, float64_distances, lattice_oracle, search

pytestmark = pytest.mark.slow
CASES = 10_000


def lattice(n, k, d):
    return torch.randint(-8, 9, (n, d)).float(), torch.randint(-8, 9, (k, d)).float()


def heavy_tails(n, k, d):
    def scale(rows):
        return torch.exp(4 * torch.randn(rows, 1))

    return torch.randn(n, d) * scale(n), torch.randn(k, d) * scale(k)


def rows_near_the_centre(n, k, d):
    return torch.randn(n, d) * 1e-6, torch.randn(k, d)


def rows_far_away(n, k, d):
    return torch.randn(n, d) * 1e6, torch.randn(k, d)


def one_cluster(n, k, d):
    codes = 1e-4 * torch.randn(k, d) + torch.randn(1, d)
    return codes[torch.randint(k, (n,))] + 1e-5 * torch.randn(n, d), codes


def channels_of_all_sizes(n, k, d):
    size = torch.exp(8 * torch.randn(d))
    return torch.randn(n, d) * size, torch.randn(k, d) * size


def one_code_far_out(n, k, d):
    codes = torch.randn(k, d)
    codes[random.randrange(k)] *= 1e8
    return torch.randn(n, d), codes


DATA = [
    heavy_tails,
    rows_near_the_centre,
    rows_far_away,
    one_cluster,
    channels_of_all_sizes,
    one_code_far_out,
]


def shape():
    n = random.choice([1, 5, 12, 13, 33])
    k = random.choice([1, 2, 31, 32, 33, 64, 100, 300])
    return n, k, random.choice([1, 2, 3, 5, 8, 16, 24, 31, 32, 33, 64, 100])


@pytest.mark.parametrize("which", SEARCHES[1:])
def test_integer_lattice(which):
    random.seed(1)
    for case in range(CASES):
        z, codes = lattice(*shape())
        index, distance = search(which, z, codes)
        expected, squared = lattice_oracle(z, codes)
        assert torch.equal(index, expected) and torch.equal(distance, squared.float()), case


@pytest.mark.parametrize("data", DATA, ids=lambda data: data.__name__)
@pytest.mark.parametrize("which", SEARCHES[1:])
def test_no_regret(which, data):
    random.seed(2)
    for case in range(CASES // len(DATA)):
        z, codes = data(*shape())
        index, _ = search(which, z, codes)
        squared = float64_distances(z, codes)
        least = squared.amin(-1)
        chosen = squared.gather(1, index[:, None]).squeeze(-1)
        width = 4 * (z.shape[1] + 3) * 2.0**-53 * least
        assert bool((chosen <= least + width).all()), case
        clear = (squared <= (least + width)[:, None]).sum(-1) == 1
        assert torch.equal(squared.argmin(-1)[clear], index[clear]), case


@pytest.mark.parametrize("data", DATA, ids=lambda data: data.__name__)
@pytest.mark.parametrize("which", SEARCHES[1:])
def test_no_regret_in_float64(which, data):
    random.seed(3)
    for case in range(CASES // len(DATA)):
        z, codes = (t.double() * (1 + 2.0**-40) for t in data(*shape()))
        index, _ = search(which, z, codes)
        squared = float64_distances(z, codes)
        least = squared.amin(-1)
        chosen = squared.gather(1, index[:, None]).squeeze(-1)
        width = 4 * (z.shape[1] + 3) * 2.0**-53 * least
        assert bool((chosen <= least + width).all()), case


@pytest.mark.parametrize("data", DATA, ids=lambda data: data.__name__)
@pytest.mark.parametrize("which", SEARCHES[1:])
def test_no_smaller_cosine(which, data):
    random.seed(4)
    for case in range(CASES // len(DATA)):
        z, codes = data(*shape())
        if case % 2:
            z, codes = z.double(), codes.double()
        index, _ = search(which, z, codes, "cosine")
        unit = [t.double() / t.double().norm(dim=-1, keepdim=True) for t in (z, codes)]
        cosine = unit[0] @ unit[1].T
        most = cosine.amax(-1)
        chosen = cosine.gather(1, index[:, None]).squeeze(-1)
        width = 8 * (z.shape[1] + 8) * 2.0**-53
        assert bool((chosen >= most - width).all()), case
        clear = (cosine >= (most - width)[:, None]).sum(-1) == 1
        assert torch.equal(cosine.argmax(-1)[clear], index[clear]), case
