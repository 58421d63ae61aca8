"""`nearest_code` and its peers: GFLOP/s, peak memory and the wrong-argmin rate against float64."""

from __future__ import annotations

import pytest
from cases import SUITES

from vqkern.bench import OPERATIONS

OP = "nearest_code"


@pytest.mark.parametrize("contestant", OPERATIONS[OP].contestants_on("cpu"), ids=lambda c: c.name)
@pytest.mark.parametrize("case", SUITES[OP], ids=lambda c: f"{c.data}-{c.n}x{c.k}x{c.d}")
def test_nearest_code(run, case, contestant):
    run(case, contestant)
