"""Measures of quantized latents."""

from torch import Tensor

from vqkern.quantizers import Quantizer, Usage


def quantization_error(z: Tensor, quantized: Tensor, *, channel_dim: int = -1) -> Tensor:
    """E = mean over tokens of |z - z_q|^2, the squares summed over channels (not averaged).

    Args:
        z: Latents, channels D at `channel_dim`.
        quantized: Their codes, of the same shape.

    Returns:
        float64 scalar, summed in float64.

    Raises:
        ValueError: shapes differ, or there is no token.
    """
    if z.shape != quantized.shape:
        raise ValueError(
            f"quantized: shape {list(quantized.shape)} differs from z's {list(z.shape)}"
        )
    if z.numel() == 0:
        raise ValueError(f"z: expected at least one token, got shape {list(z.shape)}")
    return (z.double() - quantized.double()).square().sum(channel_dim).mean()


def usages(quantizer: Quantizer) -> list[Usage]:
    """How each codebook was used, one entry a codebook of a structured quantizer."""

    def flat(usage: Usage | list) -> list[Usage]:
        if isinstance(usage, Usage):
            return [usage]
        return [entry for part in usage for entry in flat(part)]

    return flat(quantizer.usage())
