"""What a mutant is."""

from __future__ import annotations

from typing import NamedTuple


class Mutant(NamedTuple):
    """`text`, which occurs once in `file`, becomes `replacement`; `suite` names the tests."""

    name: str
    suite: str
    file: str
    text: str
    replacement: str
    breaks: str
