"""`code_sums` and its peers: values a second, peak memory and the error against float64."""

from __future__ import annotations

import pytest
from cases import SUITES

from vqkern.bench import OPERATIONS

OP = "code_sums"


@pytest.mark.parametrize("contestant", OPERATIONS[OP].contestants_on("cpu"), ids=lambda c: c.name)
@pytest.mark.parametrize("case", SUITES[OP], ids=lambda c: f"{c.data}-{c.n}x{c.k}x{c.d}")
def test_code_sums(run, case, contestant):
    run(case, contestant)
