"""`certificates` says how indices were proved, and costs nothing while nobody asks."""

import pytest
import torch
from support import HAS_NATIVE

import vqkern
from vqkern.ops.nearest_code import certificate

BACKENDS = ["torch", *(["cpp"] if HAS_NATIVE else [])]


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_are_counted_once(backend):
    z, codes = torch.randn(500, 8), torch.randn(3000, 8)
    z[3, 1] = float("nan")
    with vqkern.certificates() as certificate:
        vqkern.nearest_code(z, codes, backend=backend)
    assert certificate.rows == 500 and certificate.invalid == 1
    assert certificate.certified + certificate.scanned == 499
    assert certificate.share >= 0.99
    assert 499 <= certificate.candidates <= 20 * 499


@pytest.mark.parametrize("data", ["gaussian", "near"])
@pytest.mark.skipif(not HAS_NATIVE, reason="the native module is not built")
@pytest.mark.parametrize("metric", ["l2", "cosine"])
def test_the_screens_decide_ordinary_rows(data, metric):
    z, codes = torch.randn(600, 16), torch.randn(5000, 16)
    if data == "near":
        z = codes[:600] + 1e-3 * z
    with vqkern.certificates() as certificate:
        vqkern.nearest_code(z, codes, metric=metric)
    assert certificate.certified == 600 and certificate.scanned == 0


def test_layers_are_seen_and_blocks_nest():
    quantizer = vqkern.build_quantizer("vanilla", dim=4, codebook_size=50)
    z = torch.randn(30, 4)
    quantizer(z)
    with vqkern.certificates() as outer:
        quantizer(z)
        with vqkern.certificates() as inner:
            quantizer.encode(z[:7])
        quantizer(z)
    quantizer(z)
    assert (outer.rows, inner.rows) == (67, 7)


def test_a_block_that_raises_is_closed():
    with pytest.raises(ValueError, match="codes is empty"), vqkern.certificates() as certificate:
        vqkern.nearest_code(torch.ones(1, 2), torch.ones(0, 2))
    vqkern.nearest_code(torch.ones(1, 2), torch.ones(1, 2))
    assert certificate.rows == 0


def test_nothing_to_prove():
    with vqkern.certificates() as certificate:
        vqkern.nearest_code(torch.empty(0, 2), torch.ones(1, 2))
    assert certificate.rows == 0 and certificate.share == 1.0


def test_a_graph_that_is_captured_has_no_counts(monkeypatch):
    device = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert not certificate.recording(device)
    with vqkern.certificates():
        assert certificate.recording(torch.device("cpu"))
        with pytest.raises(RuntimeError, match="certificates: .* outside of `with vqkern.cert"):
            certificate.recording(device)
