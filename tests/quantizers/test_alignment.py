"""What pulls the codes: values, released variants, masks, and the same bits on every rank."""

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support import relative_error

import vqkern
from vqkern.quantizers import MMD, PriorWasserstein, Wasserstein
from vqkern.quantizers import alignment as drawing
from vqkern.quantizers.alignment import build_alignment

DATA = Path(__file__).parents[1] / "data"
ALL = [MMD(), Wasserstein(), Wasserstein(squared=False), PriorWasserstein()]


def ids(alignment):
    return "-".join(str(v) for v in alignment.config.values() if isinstance(v, (str, bool)))


def loss_and_gradient(alignment, features, codes, valid=None):
    if valid is None:
        valid = torch.ones(len(features), dtype=torch.bool)
    codes = codes.detach().requires_grad_()
    loss = alignment(features, valid, codes)
    return loss.detach(), torch.autograd.grad(loss, codes)[0]


@pytest.mark.parametrize("dim", ["d8", "d32"])
def test_wasserstein_of_the_papers_and_as_released(dim):
    data = load_file(DATA / "wasserstein_loss.safetensors")
    truth = {k.split("/")[-1]: v for k, v in data.items() if k.startswith(dim + "/out")}
    z, codes = data[f"{dim}/in/z"].double(), data[f"{dim}/in/codebook"].double()
    cases = [
        (Wasserstein(1.0), "w2sq", "w2sq_grad_codebook", 1e-12),
        (PriorWasserstein(1.0), "dcr", "dcr_grad_codebook", 1e-12),
        (Wasserstein(1.0, compat="released"), "vqgan_value_f64", "vqgan_grad_codebook_f64", 1e-12),
        (
            Wasserstein(1.0, compat="released-multiscale"),
            "var_value_f64",
            "var_grad_codebook_f64",
            1e-12,
        ),
        (
            PriorWasserstein(1.0, compat="released"),
            "dcr_as_released_f32",
            "dcr_as_released_grad",
            1e-6,
        ),
    ]
    for alignment, value, gradient, rtol in cases:
        got = loss_and_gradient(alignment, z, codes)
        assert relative_error(got[0], truth[value]) < rtol, value
        if gradient in truth:
            assert relative_error(got[1], truth[gradient]) < 10 * rtol, gradient
        single = loss_and_gradient(alignment, z.float(), codes.float())
        assert single[0].dtype == torch.float32
        assert relative_error(single[0], truth[value]) < 1e-6, value
    w2, _ = loss_and_gradient(Wasserstein(1.0, squared=False), z, codes)
    assert relative_error(w2, truth["w2"]) < 1e-12
    plus_d = float(vqkern.prior_w2(codes)) + codes.shape[1]
    assert plus_d == pytest.approx(float(truth["dcr_plus_D"]), rel=1e-12)
    if dim == "d8":
        leaf = z.clone().requires_grad_()
        (to_z,) = torch.autograd.grad(vqkern.gaussian_w2(leaf, codes), leaf)
        assert relative_error(to_z, truth["w2sq_grad_z"]) < 1e-11


@pytest.mark.parametrize(
    "compat,name", [("released", "vqgan"), ("released-multiscale", "var")], ids=str
)
def test_mmd_as_released(compat, name):
    data = load_file(DATA / "mmd_loss.safetensors")
    alignment = MMD(1.0, compat=compat)
    value, gradient = loss_and_gradient(alignment, data["in/z"], data["in/codebook"])
    assert relative_error(value, data[f"out/{name}_value"]) < 1e-5
    assert relative_error(gradient, data[f"out/{name}_grad_codebook"]) < 1e-5


@pytest.mark.parametrize("alignment", ALL, ids=ids)
def test_only_valid_rows_count_and_the_encoder_is_left_alone(alignment):
    features, valid = torch.randn(90, 5), torch.rand(90) > 0.5
    features[~valid] = math.nan
    codes = torch.randn(40, 5) * 2
    got = loss_and_gradient(alignment, features.requires_grad_(), codes, valid)
    alone = loss_and_gradient(alignment, features.detach()[valid], codes)
    if getattr(alignment, "max_features", None) is None:  # else each draws its own
        for a, b in zip(got, alone, strict=True):
            torch.testing.assert_close(a, b)
    assert bool(got[0].isfinite()) and bool(got[1].isfinite().all())
    loss = alignment(features, valid, codes.requires_grad_())
    assert torch.autograd.grad(loss, features, allow_unused=True)[0] is None


@pytest.mark.parametrize("limit", [None, 30])
def test_where_nobody_may_wait_valid_rows_stand_in_at_random(monkeypatch, limit):
    """As on a GPU: as many rows as came or may come, no other than valid ones, each as likely."""
    monkeypatch.setattr(drawing, "is_ordinary", lambda *tensors: False)
    rows, valid = torch.arange(50.0)[:, None], torch.arange(50) % 5 > 0
    rows[~valid] = math.nan
    seen = torch.zeros(50)
    for _ in range(400):
        drawn = drawing._draw_valid(rows, valid, limit, None).flatten()
        assert len(drawn) == (limit or 50)
        seen += drawn.long().bincount(minlength=50)
    assert not seen[~valid].any()
    mean = seen.sum() / 40
    assert float((seen[valid] / mean - 1).abs().max()) < 0.3


@pytest.mark.parametrize("alignment", ALL[:3], ids=ids)
def test_without_features_there_is_no_pull(alignment):
    codes = torch.randn(10, 3)
    for features in (torch.empty(0, 3), torch.full((7, 3), math.nan)):
        valid = torch.zeros(len(features), dtype=torch.bool)
        loss, gradient = loss_and_gradient(alignment, features, codes, valid)
        assert loss == 0 and not gradient.any()


def test_one_feature_has_no_covariance():
    valid = torch.tensor([True, False, False])
    loss, gradient = loss_and_gradient(Wasserstein(), torch.randn(3, 4), torch.randn(9, 4), valid)
    assert loss == 0 and not gradient.any()


def test_the_root_is_flat_where_the_sets_agree():
    points = torch.cat([torch.eye(3), -torch.eye(3)])
    loss, gradient = loss_and_gradient(Wasserstein(1.0, squared=False), points, points)
    assert float(loss) < 1e-6 and bool(gradient.isfinite().all())
    loss, gradient = loss_and_gradient(Wasserstein(2.0, squared=False), points, points + 1)
    assert float(loss) == pytest.approx(2 * math.sqrt(3), rel=1e-6)
    torch.testing.assert_close(gradient, torch.full((6, 3), 2 / math.sqrt(3) / 6))


def test_gradient_descent_reaches_the_features_moments():
    features = torch.randn(4000, 4) @ torch.randn(4, 4) + 3
    valid = torch.ones(4000, dtype=torch.bool)
    codes = torch.randn(500, 4).requires_grad_()
    optimizer = torch.optim.SGD([codes], lr=100.0)
    for _ in range(100):
        optimizer.zero_grad()
        Wasserstein(1.0)(features, valid, codes).backward()
        optimizer.step()
    torch.testing.assert_close(codes.mean(0), features.mean(0), rtol=0, atol=1e-3)
    torch.testing.assert_close(codes.T.cov(), features.T.cov(), rtol=0, atol=1e-3)


@pytest.mark.parametrize("alignment", ALL, ids=ids)
def test_config_builds_it_again(alignment):
    assert build_alignment(alignment.config) == alignment
    assert build_alignment(None) is None


RANK = """
import os, sys, torch
import torch.distributed as dist
import vqkern
from vqkern.quantizers import MMD, Wasserstein
rank, place = int(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{place}/meeting", rank=rank, world_size=2)
generator = torch.Generator().manual_seed(3)
features = torch.randn(60, 4, generator=generator) * 2
codes = torch.randn(30, 4, generator=generator)
valid = torch.rand(60, generator=generator) > 0.2
results = {}
for name, cut in (("uneven", 17), ("all on one", 60)):
    mine = slice(0, cut) if rank == 0 else slice(cut, 60)
    for alignment in (Wasserstein(), MMD(), MMD(max_features=20, max_codes=9)):
        torch.manual_seed(rank)  # draws must agree although the ranks' generators do not
        leaf = codes.clone().requires_grad_()
        loss = alignment(features[mine], valid[mine], leaf)
        (gradient,) = torch.autograd.grad(loss, leaf)
        results[f"{name} {alignment}"] = (loss.detach(), gradient)
torch.save(results, f"{place}/{rank}.pt")
dist.barrier()
os._exit(0)  # gloo's threads have aborted the interpreter at its end; the numbers are saved
"""


def test_every_rank_has_the_loss_of_all_features(tmp_path):
    """Also where one rank has no row at all."""
    environment = {**os.environ, "PYTHONPATH": str(Path(vqkern.__file__).parents[1])}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-X", "faulthandler", "-c", RANK, str(rank), str(tmp_path)],
            env=environment,
            stderr=subprocess.PIPE,
        )
        for rank in range(2)
    ]
    for rank in ranks:
        _, errors = rank.communicate(timeout=300)
        assert rank.returncode == 0, errors.decode()
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    generator = torch.Generator().manual_seed(3)
    features = torch.randn(60, 4, generator=generator) * 2
    codes = torch.randn(30, 4, generator=generator)
    valid = torch.rand(60, generator=generator) > 0.2
    assert len(first) == 6
    for name, results in first.items():
        assert all(torch.equal(a, b) for a, b in zip(results, second[name], strict=True)), name
        if "max_features=20" in name:
            assert int((results[1].abs().sum(-1) > 0).sum()) == 9
            continue
        alignment = Wasserstein() if "Wasserstein" in name else MMD()
        expected = loss_and_gradient(alignment, features, codes, valid)
        for got, want in zip(results, expected, strict=True):
            torch.testing.assert_close(got, want)


@pytest.mark.parametrize(
    "call,message",
    [
        (lambda: Wasserstein(-1.0), "Wasserstein: weight must be a finite number.*-1.0"),
        (lambda: Wasserstein(ridge=-1e-3), "Wasserstein: ridge must be.*-0.001"),
        (lambda: Wasserstein(squared=1), "squared must be True or False, got 1"),
        (lambda: Wasserstein(compat="old"), "Wasserstein: compat must be None or one of.*'old'"),
        (lambda: PriorWasserstein(math.nan), "PriorWasserstein: weight must be"),
        (lambda: PriorWasserstein(compat="released-multiscale"), "PriorWasserstein: compat"),
        (lambda: MMD(compat="old"), "MMD: compat must be None or one of.*'old'"),
        (lambda: MMD(bandwidths=(1.0,), compat="released"), "has its own bandwidths"),
        (lambda: MMD(bandwidths=(1.0,), multiples=(2.0,)), "leaves no room for multiples"),
        (lambda: MMD(multiples=(2.0,), compat="released"), "leaves no room for multiples"),
        (lambda: MMD(max_codes=2.5), "MMD: max_codes must be a whole number of at least 2"),
        (lambda: Wasserstein(compat="released", ridge=0.1), "its own root and ridge"),
        (lambda: Wasserstein(compat="released", squared=False), "its own root and ridge"),
        (lambda: MMD(weight="x"), "MMD: weight must be a finite number"),
    ],
    ids=range(14),
)
def test_bad_options_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
