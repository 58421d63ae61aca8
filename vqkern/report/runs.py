"""The folders of training runs, as a comparison reads them."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vqkern.report.results import Curve
from vqkern.terminal import one_line


@dataclass(frozen=True)
class Run:
    """One run, as far as it got.

    Attributes:
        name: Its folder's name, with more of the path where two runs share it.
        folder: Where it is.
        recipe: The resolved recipe, nested.
        curves: Of every logged value with at least one finite number, by its name in the log.
        step: The last step that was logged, 0 without one.
        evaluations: What `vqkern eval` wrote.
        samples: Steps and files of the pictures made during training, in order.
        problems: What could not be read, in words.
    """

    name: str
    folder: Path
    recipe: dict
    curves: dict[str, Curve]
    step: int
    evaluations: list[dict]
    samples: list[tuple[int, Path]]
    problems: list[str]

    @property
    def steps(self) -> int:
        """Steps of the whole training."""
        return self.recipe["optim"]["steps"]

    @property
    def tokenizer(self) -> Path | None:
        """The finished tokenizer's folder; None for a run that has not finished."""
        folder = self.folder / "tokenizer"
        return folder if (folder / "config.json").is_file() else None

    @property
    def quantizer(self) -> str:
        """`mmd, 16,384 codes`."""
        settings = self.recipe.get("quantizer") or {}
        if settings.get("name") is None:
            return "that of the start"
        return f"{settings['name']}, {settings['codebook_size']:,} codes"


def read_runs(folders: Sequence[str | Path]) -> list[Run]:
    """Runs in the order given.

    Raises:
        ValueError: a folder is missing, is not that of a training run, or is given twice.
    """
    paths = [Path(folder) for folder in folders]
    whole = [path.resolve() for path in paths]
    for number, path in enumerate(whole):
        if path in whole[:number]:
            raise ValueError(f"run {str(paths[number])!r} is given twice")
    return [_read(path, name) for path, name in zip(paths, _names(whole), strict=True)]


def setting_differences(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """`optim.lr` and its value in every run, for each setting in which runs differ."""
    flat = [dict(_flattened(run.recipe)) for run in runs]
    names = dict.fromkeys(name for settings in flat for name in settings)
    rows = [(name, [_shown(settings, name) for settings in flat]) for name in names]
    return [(name, values) for name, values in rows if len(set(values)) > 1]


def _read(folder: Path, name: str) -> Run:
    if not folder.is_dir():
        raise ValueError(f"run {str(folder)!r} is not a folder")
    recipe = _recipe(folder)
    lines, problems = _lines(folder / "metrics.jsonl")
    evaluations = []
    for file in sorted(folder.glob("eval-*.json")):
        try:
            evaluations.append(dict(json.loads(file.read_text(encoding="utf-8"))))
        except (ValueError, TypeError, OSError) as error:
            problems.append(f"{file.name} cannot be read: {error}")
    found = [(p.stem.rpartition("-")[2], p) for p in (folder / "samples").glob("step-*.png")]
    samples = sorted((int(step), path) for step, path in found if step.isdecimal())
    saved = [(p.name.rpartition("-")[2]) for p in (folder / "checkpoints").glob("step-*")]
    reached = [int(step) for step in saved if step.isdecimal()]
    last = lines[-1]["step"] if lines else max(reached, default=0)
    return Run(name, folder, recipe, _curves(lines), last, evaluations, samples, problems)


def _recipe(folder: Path) -> dict:
    try:
        import yaml
    except ImportError as error:
        raise ValueError(
            "runs have YAML recipes, and PyYAML is not installed: pip install 'vqkern[train]'"
        ) from error
    path = folder / "recipe.yaml"
    if not path.is_file():
        raise ValueError(
            f"run {str(folder)!r} has no recipe.yaml: expected a folder that `vqkern train` wrote"
        )
    try:
        recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
        steps = recipe["optim"]["steps"]
    except (yaml.YAMLError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise ValueError(f"{str(path)!r} is not the recipe of a run: {one_line(error)}") from error
    if not isinstance(steps, int):
        raise ValueError(f"{str(path)!r} is not the recipe of a run: optim.steps is {steps!r}")
    return recipe


def _lines(path: Path) -> tuple[list[dict], list[str]]:
    """The objects of metrics.jsonl, and what was wrong with others."""
    if not path.is_file():
        return [], ["metrics.jsonl is missing: no curves"]
    lines, bad = [], 0
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
            line["step"] = int(line["step"])
            lines.append(line)
        except (ValueError, TypeError, KeyError):  # one in which a kill came, say
            bad += 1
    problems = [f"{bad} line{'s' if bad > 1 else ''} of metrics.jsonl cannot be read"] * bool(bad)
    if not lines:
        problems.append("metrics.jsonl has no readable line: no curves")
    return lines, problems


def _curves(lines: list[dict]) -> dict[str, Curve]:
    curves: dict[str, Curve] = {}
    for line in lines:
        for name, value in line.items():
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if name != "step" and number and math.isfinite(value):
                curve = curves.setdefault(name, Curve(name, name))
                curve.steps.append(line["step"])
                curve.values.append(float(value))
    return curves


def _names(folders: list[Path]) -> list[str]:
    """The shortest ends of the paths that tell them apart."""
    most = max(len(folder.parts) for folder in folders)
    for count in range(1, most + 1):
        names = ["/".join(folder.parts[-count:]) for folder in folders]
        if len(set(names)) == len(names):
            return names
    return [str(folder) for folder in folders]


def _flattened(described: dict, above: str = "") -> list[tuple[str, object]]:
    found = []
    for name, value in described.items():
        if isinstance(value, dict) and value:
            found += _flattened(value, f"{above}{name}.")
        else:
            found.append((f"{above}{name}", value))
    return found


def _shown(settings: dict, name: str) -> str:
    if name not in settings:
        return "not set"
    value = settings[name]
    return "none" if value is None else value if isinstance(value, str) else json.dumps(value)
