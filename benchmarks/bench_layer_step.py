"""A training step of a layer and its peers: forward, backward, update; time, memory and error."""

from __future__ import annotations

import pytest
from cases import SUITES

from vqkern.bench import OPERATIONS

OPS = ("layer_step", "layer_step_ema")
RUNS = [
    pytest.param(case, contestant, id=f"{op}-{case.n}x{case.k}x{case.d}-{contestant.name}")
    for op in OPS
    for case in SUITES[op]
    for contestant in OPERATIONS[op].contestants_on(case.device)
]


@pytest.mark.parametrize(("case", "contestant"), RUNS)
def test_layer_step(run, case, contestant):
    run(case, contestant)
