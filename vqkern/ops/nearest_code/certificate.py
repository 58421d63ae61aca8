"""How indices were proved: counts that every search adds to the records that are open."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch


@dataclass
class Certificate:
    """What the searches of a block of code did.

    Attributes:
        rows: rows searched for.
        certified: rows decided by a screen with a proved error bound and exact measuring.
        candidates: codes measured exactly for those rows, in all.
        scanned: rows for which every code was measured exactly; as right, and slow.
        invalid: rows with a NaN or an infinity, which have no nearest code.
    """

    rows: int = 0
    certified: int = 0
    candidates: int = 0
    scanned: int = 0
    invalid: int = 0

    @property
    def share(self) -> float:
        """Certified rows among the valid ones; 1 where there was none."""
        valid = self.rows - self.invalid
        return self.certified / valid if valid else 1.0


_OPEN: list[Certificate] = []


@contextmanager
def certificates() -> Iterator[Certificate]:
    """Records how the indices of all `nearest_code` calls inside were proved, those of layers too.

    ::

        with vqkern.certificates() as certificate:
            quantizer(z)
        print(certificate)

    Blocks nest; each sees the calls inside it, from any thread. On a GPU, reading the counts waits
    for each search, and a search that is being captured in a CUDA graph raises RuntimeError.
    """
    certificate = Certificate()
    _OPEN.append(certificate)
    try:
        yield certificate
    finally:
        # By identity: equal counts do not make two records one.
        _OPEN[:] = [record for record in _OPEN if record is not certificate]


def recording(device: torch.device) -> bool:
    """Whether anybody is interested in a search on `device`.

    Raises:
        RuntimeError: a CUDA graph is being captured, and its searches have no counts to read yet.
    """
    if _OPEN and device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            "certificates: a search that a CUDA graph captures has no counts to read; capture it "
            "outside of `with vqkern.certificates()`, and record a call that is not captured"
        )
    return bool(_OPEN)


def record(rows: int, certified: int, candidates: int, scanned: int, invalid: int) -> None:
    """Adds one search to every open record."""
    for certificate in _OPEN:
        certificate.rows += rows
        certificate.certified += certified
        certificate.candidates += candidates
        certificate.scanned += scanned
        certificate.invalid += invalid
