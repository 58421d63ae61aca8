"""Every peer is called as it should be; none of them is needed: fakes take their place.

A fake has the peer's signature, computes by float64 differences, and keeps what it was given.
"""

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch

from vqkern.bench import Case, Contestant
from vqkern.bench.contestants import base, nearest_code, nearest_code_cuda
from vqkern.bench.contestants.layer_step import DECAY
from vqkern.bench.operations import OPERATIONS, judge_nearest

PEERS = {c.name: c for c in OPERATIONS["nearest_code"].contestants if c.needs}
CASE = Case(37, 23, 16)


def _argmin(z, codes):
    z, codes = (torch.as_tensor(t).double() for t in (z, codes))
    return (z[:, None] - codes[None]).square().sum(-1).argmin(-1)


class _Seen(list):
    """What a fake was given: one entry a call."""


def _float32(*arrays):
    assert all(a.dtype == np.float32 and a.flags.c_contiguous for a in arrays)


def _faiss(seen):
    class IndexFlatL2:
        def __init__(self, d):
            self.d = d

        def add(self, codes):
            _float32(codes)
            self.codes = codes

        def search(self, z, k):
            _float32(z)
            return np.zeros((len(z), k), np.float32), _argmin(z, self.codes).numpy()[:, None]

    return {"faiss": {"IndexFlatL2": IndexFlatL2, "omp_set_num_threads": seen.append}}


def _sklearn(seen):
    class ThreadpoolController:
        def limit(self, *, limits):
            seen.append(limits)
            return self

        def __enter__(self):
            return self

        def __exit__(self, *_):
            seen.append("restored")

    def pairwise_distances_argmin(x, y):
        _float32(x, y)
        return _argmin(x, y).numpy()

    return {
        "sklearn": {},
        "sklearn.metrics": {"pairwise_distances_argmin": pairwise_distances_argmin},
        "threadpoolctl": {"ThreadpoolController": ThreadpoolController},
    }


def _usearch(seen):
    def search(dataset, query, count, metric, *, exact, threads):
        _float32(dataset, query)
        assert (count, metric, exact) == (1, "squared L2", True)
        seen.append(threads)
        keys = _argmin(query, dataset).numpy().astype(np.uint64)
        # A single query loses a dimension.
        return SimpleNamespace(keys=keys if len(query) == 1 else keys[:, None])

    metrics = SimpleNamespace(L2sq="squared L2")
    return {"usearch": {}, "usearch.index": {"search": search, "MetricKind": metrics}}


def _keops(seen):
    class LazyTensor:
        def __init__(self, tensor):
            assert tensor.dtype == torch.float32
            self.tensor = tensor

        def __sub__(self, other):
            return LazyTensor(self.tensor - other.tensor)

        def __pow__(self, power):
            return LazyTensor(self.tensor**power)

        def sum(self, axis):
            return LazyTensor(self.tensor.sum(axis))

        def argmin(self, axis):
            seen.append(tuple(self.tensor.shape))
            return self.tensor.argmin(axis)[:, None]

    return {
        "pykeops": {"set_verbose": lambda on: None},
        "pykeops.torch": {"LazyTensor": LazyTensor},
    }


def _vector_quantize(seen):
    class VectorQuantize(torch.nn.Module):
        def __init__(self, dim, codebook_size, **options):
            super().__init__()
            seen.append(options)
            self._codebook = torch.nn.Module()
            self._codebook.register_buffer("embed", torch.zeros(1, codebook_size, dim))

        def forward(self, x):
            assert not self.training and x.dim() == 3
            index = _argmin(x[0], self._codebook.embed[0])
            return self._codebook.embed[0][index][None], index[None], torch.zeros(1)

    return {"vector_quantize_pytorch": {"VectorQuantize": VectorQuantize}}


def _faiss_cuda(seen):
    class GpuIndexFlatL2:
        def __init__(self, resources, d, config):
            seen.append((d, config.device))

        def add(self, codes):
            self.codes = codes

        def search(self, z, k):
            assert z.dtype == self.codes.dtype == torch.float32
            return None, _argmin(z, self.codes)[:, None]

    classes = {"GpuIndexFlatL2": GpuIndexFlatL2, "GpuIndexFlatConfig": SimpleNamespace}
    return {
        "faiss": {**classes, "StandardGpuResources": object},
        "faiss.contrib": {},
        "faiss.contrib.torch_utils": {},
    }


def _cuvs(seen):
    def build(codes, metric):
        assert codes.dtype == torch.float32 and codes.is_contiguous()
        seen.append(metric)
        return codes

    def search(index, z, k):
        assert z.dtype == torch.float32 and k == 1
        return None, _argmin(z, index).numpy()[:, None]

    brute_force = SimpleNamespace(build=build, search=search)
    return {"cuvs": {}, "cuvs.neighbors": {"brute_force": brute_force}}


def _flash_kmeans(seen):
    def euclid_assign_triton(x, centroids, x_sq):
        assert x.dtype == centroids.dtype and x_sq.dtype == torch.float32
        assert torch.allclose(x_sq[0], x[0].float().square().sum(-1))
        seen.append(tuple(x.shape))
        return _argmin(x[0].float(), centroids[0].float()).to(torch.int32)[None]

    function = {"euclid_assign_triton": euclid_assign_triton}
    return {"flash_kmeans": {}, "flash_kmeans.assign_euclid_triton": function}


FAKES = {
    "faiss IndexFlatL2": _faiss,
    "scikit-learn argmin": _sklearn,
    "usearch exact": _usearch,
    "KeOps argmin": _keops,
    "vector-quantize-pytorch": _vector_quantize,
    "faiss GpuIndexFlatL2": _faiss_cuda,
    "cuVS brute_force": _cuvs,
    "flash-kmeans assignment": _flash_kmeans,
}


@pytest.fixture
def fake(monkeypatch):
    """fake(name): puts a fake in the place of the peer's modules; what it is given."""

    def install(name):
        seen = _Seen()
        for path, attributes in FAKES[name](seen).items():
            module = ModuleType(path)
            module.__spec__ = ModuleSpec(path, None)
            module.__path__ = []
            for key, value in attributes.items():
                setattr(module, key, value)
            monkeypatch.setitem(sys.modules, path, module)
            parent, _, child = path.rpartition(".")
            if parent:
                setattr(sys.modules[parent], child, module)
        return seen

    return install


def test_every_peer_has_a_fake():
    assert set(FAKES) == set(PEERS)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("n", [1, 37])
@pytest.mark.parametrize("name", FAKES)
def test_a_peer_gets_the_values_as_they_are(name, n, dtype, fake):
    fake(name)
    case = Case(n, 23, 16, dtype=dtype)
    z, codes = case.vectors_and_codes()
    index = PEERS[name].prepare(case, z, codes)()
    verdict = judge_nearest(case, (z, codes))((index,))
    assert (verdict.checked, verdict.wrong) == (n, 0)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("faiss IndexFlatL2", [3]),
        ("scikit-learn argmin", [3, "restored"]),
        ("usearch exact", [3]),
        ("cuVS brute_force", ["sqeuclidean"]),
        ("faiss GpuIndexFlatL2", [(16, 0)]),
        ("flash-kmeans assignment", [(1, 37, 16)]),
        ("vector-quantize-pytorch", [{"rotation_trick": False}]),
    ],
)
def test_a_peer_follows_torch_s_threads_and_gets_its_settings(name, expected, fake):
    seen = fake(name)
    torch.set_num_threads(3)
    PEERS[name].prepare(CASE, *CASE.vectors_and_codes())()
    assert seen == expected


@pytest.mark.parametrize("n", [1, 37])
def test_keops_compiles_before_the_clock_starts(n, fake):
    seen = fake("KeOps argmin")
    case = Case(n, 23, 4)
    call = PEERS["KeOps argmin"].prepare(case, *case.vectors_and_codes())
    assert seen == [(min(n, 2), 2)]
    call()
    assert seen[1:] == [(n, 23)]


def test_tf32_is_on_inside_the_call_only(monkeypatch):
    seen = []
    addmm = torch.addmm

    def watched(*arguments, **options):
        seen.append(torch.get_float32_matmul_precision())
        return addmm(*arguments, **options)

    monkeypatch.setattr(torch, "addmm", watched)
    before = torch.get_float32_matmul_precision()
    z, codes = CASE.vectors_and_codes()
    index = nearest_code_cuda._addmm_tf32(CASE, z, codes)()
    assert before != "high" and seen == ["high"]
    assert torch.get_float32_matmul_precision() == before
    assert judge_nearest(CASE, (z, codes))((index,)).wrong == 0


# Limits


@pytest.mark.parametrize(
    ("name", "case", "reason"),
    [
        ("usearch exact", Case(8192, 16384, 8), "seconds a call: up to N x K = 2^26"),
        ("usearch exact", Case(4096, 16384, 8), None),
        ("vector-quantize-pytorch", Case(8192, 65536, 16), "5 GB: up to N x K = 2^28"),
        ("vector-quantize-pytorch", Case(16384, 16384, 8), None),
        (
            "vector-quantize-pytorch",
            Case(16384, 16384, 8, data="near"),
            "above N x K = 2^26 on gaussian data only",
        ),
        ("flash-kmeans assignment", Case(9, 9, 8), "takes D = 16, 32, 64, ..., not 8"),
        ("flash-kmeans assignment", Case(9, 9, 48), "takes D = 16, 32, 64, ..., not 48"),
        ("flash-kmeans assignment", Case(9, 9, 64), None),
        ("faiss GpuIndexFlatL2", CASE, "built without CUDA (pip install faiss-gpu-cu12)"),
    ],
    ids=lambda value: value if isinstance(value, str) and " up" not in value else "",
)
def test_limits(name, case, reason, fake):
    if name == "faiss GpuIndexFlatL2":
        fake("faiss IndexFlatL2")
    found = PEERS[name].limit(case)
    assert found is None if reason is None else reason in found


def test_keops_needs_a_compiler_and_a_small_problem(monkeypatch):
    limit = PEERS["KeOps argmin"].limit
    monkeypatch.setattr(base.shutil, "which", lambda name: "/bin/" + name)
    assert limit(Case(8192, 65536, 16)) is None
    assert limit(Case(4096, 65536, 64)) == "seconds a call on a CPU: up to N x K x D = 2^33"
    monkeypatch.setattr(base.shutil, "which", lambda name: None)
    assert "there is no C++ compiler here" in limit(CASE)


def test_a_layer_step_that_would_not_fit_into_memory_is_refused(monkeypatch):
    sizes = {"SC_PHYS_PAGES": 24 << 18, "SC_PAGE_SIZE": 4096}
    monkeypatch.setattr(base.os, "sysconf", sizes.get)
    peer = next(c for c in OPERATIONS["layer_step"].contestants if c.needs)
    case = Case(16384, 262144, 256, op="layer_step")
    assert peer.limit(case) == (
        "its N x K one-hot matrix alone takes 17.2 GB, and a step would take 103 GB; "
        "this machine has 26 GB"
    )
    assert peer.limit(Case(8192, 65536, 16, op="layer_step")) is None
    half = Case(8, 8, 4, op="layer_step", dtype="float16")
    assert all(c.limit(half) for c in OPERATIONS["layer_step"].contestants)


def test_devices():
    for operation in OPERATIONS.values():
        for device in ("cpu", "cuda:0"):
            assert sum(c.ours for c in operation.contestants_on(device)) == 1
    here = {c.name for c in OPERATIONS["nearest_code"].contestants_on("cpu")}
    there = {c.name for c in OPERATIONS["nearest_code"].contestants_on("cuda")}
    assert {"faiss IndexFlatL2", "scikit-learn argmin", "usearch exact"} == here - there
    assert {c.name for c in nearest_code_cuda.CUDA_PEERS} == there - here
    assert "KeOps argmin" in here & there


def test_packages():
    def package(*needs):
        return Contestant("peer", nearest_code.addmm, needs=needs).package()

    assert package() == ""
    assert package(("torch", ""), ("no_such_module", "")) == f"torch {torch.__version__}"
    assert package(("no_such_module", "pip install it")) == "no_such_module"


# A layer step: judged by autograd in float64 and, for the averages, by a loop


def _exact_gradient_step(case, z, codes, cotangent):
    z, codes, cotangent = z.double(), codes.double(), cotangent.double()
    z.requires_grad_(), codes.requires_grad_()
    index = _argmin(z.detach(), codes.detach())
    nearest = codes[index]
    loss = ((nearest - z.detach()) ** 2).mean() + ((z - nearest.detach()) ** 2).mean()
    loss = loss + ((z + (nearest - z).detach()) * cotangent).sum()
    loss.backward()
    return index, (codes - case.n * case.d / 8 * codes.grad).detach(), z.grad


def _exact_ema_step(case, z, codes, cotangent):
    z, codes, after = z.double(), codes.double(), codes.double().clone()
    index = _argmin(z, codes)
    for k in set(index.tolist()):
        chosen = z[index == k]
        mass = DECAY * 1 + (1 - DECAY) * len(chosen)
        after[k] = (DECAY * codes[k] + (1 - DECAY) * chosen.sum(0)) / mass
    pull = 0.25 * 2 * (z - codes[index]) / z.numel()
    return index, after, cotangent.double() + pull


@pytest.mark.parametrize(
    ("op", "exact"), [("layer_step", _exact_gradient_step), ("layer_step_ema", _exact_ema_step)]
)
def test_layer_steps_are_judged(op, exact):
    case = Case(70, 41, 5, op=op)
    inputs = OPERATIONS[op].make(case)
    judge = OPERATIONS[op].judge(case, inputs)
    index, after, z_grad = exact(case, *inputs)
    codes = inputs[1]
    right = judge((index, after, z_grad))
    assert (right.checked, right.wrong, right.not_lowest) == (70, 0, 0) and right.error < 1e-12
    # Nothing moved; everything moved twice as far; the gradient is the upstream one alone.
    assert judge((index, codes, z_grad)).error == pytest.approx(1, rel=1e-6)
    assert judge((index, 2 * after - codes, z_grad)).error == pytest.approx(1, rel=1e-6)
    assert judge((index, after, inputs[2])).error > 0.01
    other = index.clone()
    other[3] = (index[3] + 1) % case.k
    assert judge((other, after, z_grad)).wrong == 1


@pytest.mark.parametrize("op", ["layer_step", "layer_step_ema"])
def test_layer_steps_start_anew_from_the_same_codes(op):
    case = Case(70, 41, 5, op=op)
    inputs = OPERATIONS[op].make(case)
    kept = [t.clone() for t in inputs]
    for contestant in OPERATIONS[op].contestants:
        if contestant.needs:
            continue
        call = contestant.prepare(case, *inputs)
        first, second = call(), call()
        assert first[1].data_ptr() != second[1].data_ptr()
        assert all(map(torch.equal, first, second))
    assert all(map(torch.equal, kept, inputs))
