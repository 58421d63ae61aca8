"""What the experiments share: cells that are measured one by one, kept, resumed and tabulated.

An experiment is a set of settings and a list of cells. A cell is one line of a table: a few names
and numbers that say what is measured, such as a method and a shift. `run_experiment` measures the
cells that a folder does not hold yet, one after another, and keeps each as soon as it is finished.
A long cell hands over its state every so often, and goes on from there after a kill.
"""

from __future__ import annotations

import csv
import io
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from vqkern.files import write_whole
from vqkern.terminal import name_stage, stage_bar

# A cell is what is measured, a row is a cell and what was found: both are flat.
Cell = dict[str, str | float | int]
Row = dict[str, str | float | int | None]
State = dict[str, Tensor]

SAVE_EVERY = 20.0  # seconds between two saved states


@dataclass(frozen=True)
class Experiment:
    """One table or figure of a paper.

    Attributes:
        name: as on the command line.
        source: the paper and its table or figure.
        full, quick: settings, frozen dataclasses; `quick` runs for minutes at most on a CPU.
        cells: settings -> all cells, in the order in which they are measured.
        units: settings, cell -> its share of the progress bar.
        measure: settings, cell, work -> the figures of a cell.
        table: rows -> the text that is printed.
        plot: rows, path -> None; writes a PNG.
    """

    name: str
    source: str
    full: object
    quick: object
    cells: Callable[[object], list[Cell]]
    units: Callable[[object, Cell], int]
    measure: Callable[[object, Cell, Work], Row]
    table: Callable[[list[Row]], str]
    plot: Callable[[list[Row], Path], None]


@dataclass
class Work:
    """What a cell sees of the run: the bar, and the state that it may leave and find.

    Attributes:
        resumed: the state saved last, or None.
        advance: moves the bar by so many units.
    """

    path: Path
    key: str
    resumed: State | None = None
    seconds_before: float = 0.0
    advance: Callable[[int], object] = lambda units: None
    save_every: float = SAVE_EVERY
    started: float = field(default_factory=time.perf_counter)
    saved: float = field(default_factory=time.perf_counter)

    @property
    def seconds(self) -> float:
        """Spent on this cell so far, runs that were killed included up to their last state."""
        return self.seconds_before + time.perf_counter() - self.started

    def offer(self, state: Callable[[], State]) -> None:
        """Saves `state()` if the last save is long enough ago."""
        now = time.perf_counter()
        if now - self.saved >= self.save_every:
            _save_state(self.path, state(), self.key, self.seconds)
            self.saved = now


def run_experiment(
    experiment: Experiment,
    settings: object,
    cells: list[Cell],
    out: Path,
    *,
    save_every: float = SAVE_EVERY,
) -> list[Row]:
    """Measures the cells that `out` does not hold yet; all rows that it then holds, in order.

    Writes rows.json, NAME.csv and NAME.png, and state.safetensors while a cell is measured. A
    killed run that is started again with the same settings ends with the same rows, bit for bit on
    the same hardware, times apart.

    Raises:
        ValueError: `out` holds a run with other settings, or cannot be written to.
    """
    rows = _open(experiment, settings, out)
    missing = [cell for cell in cells if _key(cell) not in rows]
    state = out / "state.safetensors"
    bar = stage_bar(sum(experiment.units(settings, cell) for cell in missing), smoothing=0.05)
    # torch's own generator is left as it was found.
    with torch.random.fork_rng(), bar:
        for cell in missing:
            name_stage(bar, " ".join(str(value) for value in cell.values()))
            key = _state_key(experiment, settings, cell)
            resumed, seconds = _load_state(state, key)
            work = Work(state, key, resumed, seconds, bar.update, save_every)
            found = experiment.measure(settings, cell, work)
            rows[_key(cell)] = {**cell, **found, "seconds": round(work.seconds, 2)}
            _write(experiment, settings, rows, out)
            state.unlink(missing_ok=True)
    ordered = _ordered(experiment, settings, rows)
    if ordered:
        experiment.plot(ordered, out / f"{experiment.name}.png")
    return ordered


def _key(cell: Cell) -> str:
    return json.dumps(cell, sort_keys=True)


def _state_key(experiment: Experiment, settings: object, cell: Cell) -> str:
    """What a state is of; two experiments may have the same cell, and so may two settings."""
    return json.dumps([experiment.name, asdict(settings), cell], sort_keys=True)


def _ordered(experiment: Experiment, settings: object, rows: dict[str, Row]) -> list[Row]:
    keys = [_key(cell) for cell in experiment.cells(settings)]
    return [rows[key] for key in keys if key in rows]


def _open(experiment: Experiment, settings: object, out: Path) -> dict[str, Row]:
    """The rows that the folder holds by key; it is made where there is none."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--out: cannot write into {str(out)!r}: {error.strerror}") from None
    path = out / "rows.json"
    if not path.exists():
        return {}
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        name, before, rows = kept["experiment"], kept["settings"], kept["rows"]
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"--out: {str(path)!r} is not a file of this command") from None
    now = json.loads(json.dumps(asdict(settings)))
    if name != experiment.name:
        raise ValueError(f"--out: {str(out)!r} holds a run of {name}, not of {experiment.name}")
    if before != now:
        changed = sorted(k for k in {*before, *now} if before.get(k) != now.get(k))
        raise ValueError(
            f"--out: {str(out)!r} holds a run with another "
            + ", ".join(f"{k} ({before.get(k)}, now {now.get(k)})" for k in changed)
        )
    return dict(rows)


def _write(experiment: Experiment, settings: object, rows: dict[str, Row], out: Path) -> None:
    kept = {"experiment": experiment.name, "settings": asdict(settings), "rows": rows}
    write_whole(out / "rows.json", json.dumps(kept, indent=1).encode())
    ordered = _ordered(experiment, settings, rows)
    names = list(dict.fromkeys(name for row in ordered for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(ordered)
    write_whole(out / f"{experiment.name}.csv", text.getvalue().encode())


def _save_state(path: Path, state: State, key: str, seconds: float) -> None:
    from safetensors.torch import save

    tensors = {name: tensor.detach().contiguous() for name, tensor in state.items()}
    write_whole(path, save(tensors, {"cell": key, "seconds": repr(seconds)}))


def _load_state(path: Path, key: str) -> tuple[State | None, float]:
    """The state of this cell and the seconds spent on it; None where there is none."""
    from safetensors import SafetensorError, safe_open

    if not path.exists():
        return None, 0.0
    try:
        with safe_open(path, "pt") as file:
            about = file.metadata()
            state = {name: file.get_tensor(name) for name in file.keys()}
    except SafetensorError as error:
        raise ValueError(f"--out: {str(path)!r} cannot be read: {error}") from None
    # The state of a cell that was not asked for this time, or of another run that had not finished
    # its first: that cell starts anew when it is.
    return (state, float(about["seconds"])) if about["cell"] == key else (None, 0.0)
