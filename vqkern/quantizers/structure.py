"""What structures share: parts that are quantizers, once each, and one estimator for a sum."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence

from torch import nn

from .base import Quantizer
from .estimators import Estimator, needs_codes, straight_through
from .usage import Usage


class Structured(Quantizer):
    """A quantizer composed of parts: `parts` holds each once, however often it is used.

    Args:
        parts: quantizers that `checked_parts` has seen.
        dim: channels of z.
        channel_dim: where z has its channels: -1, or 1 for feature maps.
    """

    # How `build_quantizer` named the structure and its own options; None if composed by hand.
    structure: tuple[str, dict] | None = None

    def __init__(self, parts: Sequence[Quantizer], dim: int, *, channel_dim: int = -1) -> None:
        super().__init__(dim, channel_dim=channel_dim)
        self.parts = nn.ModuleList(parts)

    @property
    def codebook_size(self) -> int:
        """Codes of a token; of the largest if the parts differ."""
        return max(part.codebook_size for part in self.parts)

    @property
    def codes(self) -> list:
        """The effective codes of every part: [K, dim] each, or a list if the part is structured."""
        return [part.codes for part in self.parts]

    def usage(self) -> list[Usage] | Usage:
        """One Usage a part; the part's list if it is structured itself."""
        return [part.usage() for part in self.parts]

    def reset_usage(self) -> None:
        for part in self.parts:
            part.reset_usage()

    def load_codes(self, codes: Sequence) -> None:
        """Overwrites the codes of every part: a list as `codes` gives it."""
        if len(codes) != len(self.parts):
            raise ValueError(
                f"codes must be a list of {len(self.parts)}, one a part, got {len(codes)}"
            )
        for part, own in zip(self.parts, codes, strict=True):
            part.load_codes(own)

    def fold(self) -> Structured:
        """The same structure of folded parts: codes in plain tables, and nothing that moves them.

        Indices and outputs are those of this quantizer; what a structure adds after the codes, as
        the convolutions of a multi-scale quantizer, stays.
        """
        # The parts are folded, never copied: a projector may be larger than the codes.
        parts = [part.fold() for part in self.parts]
        memo = {id(part): new for part, new in zip(self.parts, parts, strict=True)}
        folded = copy.deepcopy(self, memo)
        folded.config = None
        if self.structure is not None and parts[0].config is not None:
            suffix, own = self.structure
            inner = {k: v for k, v in parts[0].config.items() if k not in ("name", "channel_dim")}
            name = f"{parts[0].config['name']}_{suffix}"
            folded.config = {**inner, **self._base_config(), **own, "name": name}
        return folded.train(self.training)

    def _base_config(self) -> dict:
        config = self.config or {}
        return {k: config[k] for k in ("dim", "codebook_size", "channel_dim") if k in config}

    def _snapshot(self) -> list:
        return [part._snapshot() for part in self.parts]

    def _estimators(self) -> list[Estimator]:
        return [estimator for part in self.parts for estimator in part._estimators()]


def estimator_of_sum(
    name: str, given: Estimator | None, parts: Iterable[Quantizer]
) -> Estimator | None:
    """What estimates a sum of codes as one; None where each stage has to estimate its own.

    `given` counts first, then the one that all parts agree on.

    Raises:
        TypeError: `given` needs a codebook, which a sum does not have.
    """
    if given is not None:
        if needs_codes(given) or not callable(given):
            raise TypeError(
                f"{name}: estimator must be a function (z, nearest) -> quantized, for the sum of "
                f"codes; give {given!r} to the parts"
            )
        return given
    inside = [estimator for part in parts for estimator in part._estimators()]
    if not inside:
        return straight_through
    agreed = all(estimator is inside[0] for estimator in inside)
    return inside[0] if agreed and not needs_codes(inside[0]) else None


def checked_parts(name: str, parts: Iterable[Quantizer]) -> list[Quantizer]:
    """The parts of a structure as a list.

    Raises:
        TypeError: a part is not a quantizer that can be composed.
        ValueError: there is none, one came twice, has a layout of its own, or nested masking.
    """
    parts = list(parts)
    if not parts:
        raise ValueError(f"{name}: parts is empty; it needs at least one quantizer")
    for number, part in enumerate(parts):
        if not isinstance(part, Quantizer) or not part.nests:
            raise TypeError(
                f"{name}: parts[{number}] must be a quantizer that can be part of a structure, "
                f"got {type(part).__name__}"
            )
        if part.in_channels != part.dim:
            raise TypeError(
                f"{name}: parts[{number}] must take as many channels as it gives, "
                f"{type(part).__name__} takes {part.in_channels} and gives {part.dim}"
            )
        if part.channel_dim != -1:
            raise ValueError(
                f"{name}: parts[{number}] must have channel_dim -1, got {part.channel_dim}; the "
                "structure itself takes the layout of z"
            )
        if getattr(part, "keep_probabilities", None) is not None:
            raise ValueError(
                f"{name}: parts[{number}] has nested masking, which only the outermost structure "
                "can have"
            )
    if len({id(part) for part in parts}) != len(parts):
        raise ValueError(f"{name}: parts must be different quantizers, one came twice")
    return parts
