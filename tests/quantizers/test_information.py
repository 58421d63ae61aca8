"""Bits, capacities and the conditions of a fair comparison."""

import math

import pytest
import torch

import vqkern
from vqkern.quantizers import Contestant, fair_comparison, information, information_of


def test_the_quantities_of_the_unifying_view():
    """Table 2 at 16 x 16 x 32 latents: VQ, VAR's 680 tokens, MGVQ's groups."""
    single = information(256, 32, 256, 65536)
    assert (single.input_bits, single.output_bits) == (256 * 32 * 32, 256 * 16)
    assert single.compression_ratio == 64 == 32 * 32 / 16
    assert single.capacity == 65536
    # Finding 1: doubling the tokens is squaring the codebook.
    assert (
        information(256, 32, 512, 256).output_bits == information(256, 32, 256, 65536).output_bits
    )
    var = information(256, 32, 680, 4096)
    assert var.output_bits == 680 * 12 and var.compression_ratio == pytest.approx(262144 / 8160)
    assert math.log2(var.capacity) == pytest.approx(680 * 12 / 256)
    groups = information(256, 32, 8 * 256, 2048)
    assert groups.capacity == 2**88
    assert information(256, 32, 4 * 256, 8192).capacity == 2**52
    assert information(256, 8, 256, 625).output_bits == pytest.approx(256 * 4 * math.log2(5))


def test_it_is_measured_on_a_quantizer():
    q = vqkern.build_quantizer("vanilla", dim=4, codebook_size=16, channel_dim=1)
    found = information_of(q, torch.randn(3, 4, 5, 6))
    assert found == information(30, 4, 30, 16)
    variational = vqkern.build_quantizer("vaevq", dim=4, codebook_size=16, channel_dim=1)
    assert information_of(variational, torch.randn(3, 8, 5, 6)) == found
    assert q.usage().tokens == 0
    with pytest.raises(TypeError, match="Linear has no codebook_size"):
        information_of(torch.nn.Linear(2, 2), torch.randn(3, 2))
    with pytest.raises(ValueError, match="z is empty"):
        information_of(q, torch.empty(0, 4, 5, 6))


@pytest.mark.parametrize("field", ["positions", "channels", "tokens", "codebook_size"])
def test_bad_sizes_are_named(field):
    sizes = {"positions": 4, "channels": 4, "tokens": 4, "codebook_size": 4, field: 0}
    with pytest.raises(ValueError, match=f"{field} must be a whole number of at least [12], got 0"):
        information(**sizes)


def contestant(name, latents, codebook_size=32):
    torch.manual_seed(3)
    q = vqkern.build_quantizer(
        "vanilla", dim=latents.shape[1], codebook_size=codebook_size, channel_dim=1
    )
    return Contestant(name, q, latents)


class TestFairComparison:
    z = torch.randn(40, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    other = torch.randn(40, 4, 8, 8, generator=torch.Generator().manual_seed(1))

    def test_orders_by_error(self):
        good, bad = contestant("trained", self.z), contestant("far", self.z)
        features = self.z.movedim(1, -1).reshape(-1, 4)
        good.quantizer.load_codes(vqkern.quantizers.kmeans(features, 32))
        bad.quantizer.load_codes(torch.randn(32, 4) + 3)
        result = fair_comparison([bad, good])
        assert [one.name for one in result] == ["trained", "far"]
        distance = torch.cdist(features, good.quantizer.codes).amin(1).square().mean()
        assert result[0].error == pytest.approx(distance.item(), rel=1e-4)
        assert result[0].utilization == 1.0 > result[1].utilization
        assert result[0].information.codebook_size == 32

    def test_samples_of_one_distribution_may_be_compared(self):
        fair_comparison([contestant("a", self.z), contestant("b", self.other)])

    @pytest.mark.parametrize(
        "latents,size,message",
        [
            (z, 64, r"differ in codebook sizes \(a: 32, b: 64\)\."),
            (z[:, :, :4], 32, r"differ in token counts \(a: 64, b: 32\)"),
            (z * 1.2, 32, r"latent distributions of a and b \(covariances 0.44 apart"),
            (z + 0.3, 32, r"latent distributions of a and b \(means 0.3 standard deviations"),
            (z[:, :3], 32, r"latent distributions of a and b \(4 and 3 channels\)"),
            (other * torch.tensor([1, 1, 1, 2.0])[:, None, None], 32, "of a and b"),
            (z.flatten(2)[:, :, :32, None] + 9, 8, "token counts .*codebook sizes .*latent dist"),
        ],
        ids=["size", "tokens", "variance", "mean", "channels", "one channel", "everything"],
    )
    def test_refuses_and_says_why(self, latents, size, message):
        with pytest.raises(ValueError, match=message):
            fair_comparison([contestant("a", self.z), contestant("b", latents, size)])

    def test_needs_two(self):
        with pytest.raises(ValueError, match="contestants must be two or more, got 1"):
            fair_comparison([contestant("a", self.z)])


def test_utilization_is_the_mean_over_codebooks():
    """Two halves with two codes each, of which the first uses one and the second the other."""
    halves = vqkern.build_quantizer("vanilla_halves", dim=2, codebook_size=2)
    halves.load_codes([torch.tensor([[0.0], [9.0]]), torch.tensor([[9.0], [0.0]])])
    z = torch.randn(50, 2).clamp(-1, 1)
    halves(z)
    counted = halves.usage()
    judged = fair_comparison([Contestant("a", halves, z), Contestant("b", halves, z)])
    assert [one.utilization for one in judged] == [0.5, 0.5]
    assert halves.usage() == counted  # it counts apart
