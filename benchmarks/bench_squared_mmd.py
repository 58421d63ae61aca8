"""`squared_mmd` with the gradient of the codes, and its peers: pairs a second, memory and error."""

from __future__ import annotations

import pytest
from cases import SUITES

from vqkern.bench import OPERATIONS

OP = "squared_mmd"


@pytest.mark.parametrize("contestant", OPERATIONS[OP].contestants_on("cpu"), ids=lambda c: c.name)
@pytest.mark.parametrize("case", SUITES[OP], ids=lambda c: f"{c.data}-{c.n}x{c.k}x{c.d}")
def test_squared_mmd(run, case, contestant):
    run(case, contestant)
