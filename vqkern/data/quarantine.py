"""Quarantine: images that cannot be read are set aside, counted and named; too many stop a run."""

import json
from collections.abc import Iterable
from typing import NamedTuple

DEFAULT_SHARE = 0.01


class Damage(NamedTuple):
    """An image that cannot be used: its name and the reason, one line."""

    name: str
    reason: str


class QuarantineError(ValueError):
    """More images are damaged than the run allows."""


class Quarantine:
    """The damaged images of one run of one process.

    Args:
        total: Images of the data set, damaged ones included.
        max_share: The share of them that may be damaged; above it `add` raises.

    Raises:
        ValueError: `total` is below 1 or `max_share` outside [0, 1].
    """

    def __init__(self, total: int, max_share: float = DEFAULT_SHARE) -> None:
        if total < 1:
            raise ValueError(f"total: got {total}, expected at least one image")
        if not 0 <= max_share <= 1:
            raise ValueError(f"max_share: got {max_share}, expected 0 to 1")
        self.total, self.max_share = total, max_share
        self._reasons: dict[str, str] = {}

    def __len__(self) -> int:
        """Damaged images, each counted once however often it was met."""
        return len(self._reasons)

    def __contains__(self, name: str) -> bool:
        return name in self._reasons

    @property
    def damaged(self) -> list[Damage]:
        """The images by name, with reasons."""
        return [Damage(*item) for item in sorted(self._reasons.items())]

    def add(self, damages: Iterable[Damage]) -> list[Damage]:
        """Sets images aside; returns those that were not yet known.

        Raises:
            QuarantineError: more than the allowed share is damaged now.
        """
        fresh = []
        for damage in damages:
            if damage.name not in self._reasons:
                self._reasons[damage.name] = damage.reason
                fresh.append(damage)
        if fresh and len(self) > self.max_share * self.total:
            raise QuarantineError(
                f"{len(self)} of {self.total} images are damaged, more than the allowed share of "
                f"{self.max_share:g}; the last: {fresh[-1].reason}"
            )
        return fresh

    def summary(self, limit: int = 10) -> str:
        """A few lines: the count, and the first `limit` images with their reasons."""
        lines = [f"{len(self)} of {self.total} images are damaged and were left out"]
        lines += [f"  {json.dumps(d.name)}: {d.reason}" for d in self.damaged[:limit]]
        if len(self) > limit:
            lines.append(f"  and {len(self) - limit} more")
        return "\n".join(lines)

    def state_dict(self) -> dict[str, str]:
        """Names and reasons, for a checkpoint."""
        return dict(self._reasons)

    def load_state_dict(self, state: dict[str, str]) -> None:
        """Takes over what a checkpoint knew.

        Raises:
            TypeError: not a mapping of names to reasons.
        """
        if not isinstance(state, dict) or not all(
            isinstance(part, str) for item in state.items() for part in item
        ):
            raise TypeError("state: expected a mapping of image names to reasons")
        self._reasons = dict(state)
