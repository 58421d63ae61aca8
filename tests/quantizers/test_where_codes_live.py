"""What is written to codes and buffers stays there, or is refused: memory that torch exchanges."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize, prune

import vqkern
from vqkern.quantizers import EMA, Online, Revival, Table, VectorQuantizer


def build(name, **options):
    torch.manual_seed(3)
    size = {"fsq": 6**4, "lfq": 2**4, "bsq": 2**4}.get(name.split("_")[0], 16)
    return vqkern.build_quantizer(name, dim=4, codebook_size=size, **options)


class Twice(nn.Module):
    def forward(self, x):
        return 2 * x

    def right_inverse(self, x):
        return x / 2


@pytest.mark.parametrize("name", ["ema", "online"])
def test_codes_made_of_other_parameters_cannot_be_overwritten(name):
    z = torch.randn(50, 4)
    for change in (
        lambda table: parametrize.register_parametrization(table, "weight", Twice()),
        lambda table: prune.random_unstructured(table, "weight", 0.1),
    ):
        q = build(name)
        change(q.parametrisation)
        with pytest.raises(TypeError, match="overwrites codes, but the table's weight is made of"):
            q(z)
        with pytest.raises(TypeError, match="load_codes overwrites codes, but"):
            q.load_codes(torch.zeros(16, 4))
    moved = build("vanilla")  # by gradients they can
    parametrize.register_parametrization(moved.parametrisation, "weight", Twice())
    moved(z).loss.backward()
    assert moved.parametrisation.parametrizations.weight.original.grad.any()


@pytest.mark.parametrize("name", ["ema", "ema_rq"])
def test_a_table_that_grew_is_refused(name):
    q = build(name)
    table = next(m for m in q.modules() if isinstance(m, vqkern.quantizers.Table))
    table.weight = nn.Parameter(torch.cat([table.weight] * 4), requires_grad=False)
    with pytest.raises(ValueError, match="must be of the same codes.*rule of its own"):
        q(torch.randn(50, 4))


NAMES = ["vanilla", "ema", "online", "fvq", "fsq", "lfq", "vanilla_var", "mgvq", "fsq_var"]


@pytest.mark.parametrize("name", NAMES)
def test_built_without_memory_and_filled_it_is_the_same(name):
    options = {"patch_sizes": (1, 2, 4)} if "var" in name else {}
    q = build(name, **options)
    z = torch.randn(3, 4, 4, 4)
    q(z)
    with torch.device("meta"):
        again = build(name, **options)
    again.to_empty(device="cpu")
    again.load_state_dict(q.state_dict())
    q.reset_usage()
    for mine, other in zip(q.eval()(z), again.eval()(z), strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=0)
    assert str(again.usage()) == str(q.usage())


@pytest.mark.parametrize("name", ["ema", "online", "ema_halves"])
def test_statistics_of_other_codes_are_forgotten(name):
    """Codes alone are loaded: averages of those before would draw them back."""
    q, other = build(name), build(name.replace("ema", "vanilla").replace("online", "vanilla"))
    for _ in range(5):
        q(torch.randn(100, 4))
    with torch.no_grad():
        for parameter in other.parameters():
            parameter += 50
    q.load_state_dict(other.state_dict(), strict=False)
    fresh = build(name)
    fresh.load_codes(other.codes)
    for mine, wanted in zip(q.state_dict().values(), fresh.state_dict().values(), strict=True):
        torch.testing.assert_close(mine, wanted)


RULES = {
    "ema": lambda: EMA(0.9),
    "online": lambda: Online(),
    "revival": lambda: Revival(EMA(0.9)),
    "revival of gradients": lambda: Revival(),
}


@pytest.mark.parametrize("before", RULES)
@pytest.mark.parametrize("after", RULES)
def test_statistics_of_another_rule_are_no_statistics(before, after):
    old, new = (VectorQuantizer(Table(64, 8), update=RULES[rule]()) for rule in (before, after))
    old.load_codes(torch.randn(64, 8) * 0.1)
    new.load_state_dict(old.state_dict(), strict=False)
    codes = new.codes.detach().clone()
    new(codes + 0.01)
    assert float((new.codes - codes).detach().norm(dim=1).max()) < 0.5


def test_a_load_that_is_refused_forgets_nothing():
    q = build("ema")
    q(torch.randn(100, 4))
    before = q.update.count.clone()
    with pytest.raises(RuntimeError, match="size mismatch"):
        q.load_state_dict({"parametrisation.weight": torch.zeros(8, 4)}, strict=False)
    assert torch.equal(q.update.count, before)


def test_a_state_dict_without_codes_leaves_statistics_alone():
    q = build("ema")
    q(torch.randn(100, 4))
    before = q.update.total.clone()
    q.load_state_dict({}, strict=False)
    assert torch.equal(q.update.total, before)
