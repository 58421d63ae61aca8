"""Any quantizer leaves Python: exported with a free batch size, saved, loaded, and run."""

import io

import pytest
import torch
import torch._dynamo.testing
from torch import nn

import vqkern

NAMES = ["vanilla", "ema", "mmd", "fvq", "simvq", "vaevq", "mgvq", "fsq", "lfq", "bsq"]
NAMES += [f"vanilla_{s}" for s in ("rq", "halves", "vp2", "groups", "sphere", "var", "projected")]


class Call(nn.Module):
    def __init__(self, quantizer, method):
        super().__init__()
        self.quantizer, self.method = quantizer, method

    def forward(self, x):
        result = getattr(self.quantizer, self.method)(x)
        return tuple(result) if self.method == "forward" else (result,)


def build(name):
    torch.manual_seed(0)
    size = {"fsq": 6**8, "lfq": 2**8, "bsq": 2**8}.get(name, 64)
    options = {"vanilla_var": {"patch_sizes": (1, 2, 4)}}.get(name, {})
    options = {"projector_hidden": 16} if "projected" in name else options
    return vqkern.build_quantizer(name, dim=8, codebook_size=size, channel_dim=1, **options).eval()


@pytest.mark.parametrize("method", ["encode", "decode", "forward"])
@pytest.mark.parametrize("name", NAMES)
def test_exported_saved_and_loaded_it_takes_any_batch(name, method):
    q = build(name)
    z = torch.randn(7, q.in_channels, 4, 4)
    x = q.encode(z) if method == "decode" else z
    batch = {0: torch.export.Dim("batch", min=2, max=64)}
    program = torch.export.export(Call(q, method), (x[:3],), dynamic_shapes=(batch,), strict=False)
    stored = io.BytesIO()
    torch.export.save(program, stored)
    stored.seek(0)
    found, wanted = torch.export.load(stored).module()(x), Call(q, method)(x)
    for mine, other in zip(found, wanted, strict=True):
        assert torch.equal(mine, other)


def test_a_quantizer_itself_is_exported_and_saved():
    q = build("vanilla")
    z = torch.randn(3, 8, 4, 4)
    stored = io.BytesIO()
    torch.export.save(torch.export.export(q, (z,), strict=False), stored)
    stored.seek(0)
    found = torch.export.load(stored).module()(z)
    assert torch.equal(found.index, q(z).index) and torch.equal(found.quantized, q(z).quantized)


@pytest.mark.parametrize("name", ["fsq", "lfq", "bsq", "vanilla_sphere", "vanilla_vp2"])
def test_one_compiled_graph_serves_any_batch(name):
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounter()
    q = build(name).train()
    compiled = torch.compile(q, backend=counter, fullgraph=True, dynamic=True)
    for batch in range(2, 9):
        z = torch.randn(batch, 8, 4, 4, requires_grad=True)
        assert torch.equal(compiled(z).index, q(z).index)
    assert counter.frame_count == 1
