"""The record of a run, and its table as text, CSV and JSON."""

import csv
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from torch import Tensor

from vqkern.terminal import aligned


@dataclass(frozen=True)
class Row:
    """One line of the table: a tokenizer, measured.

    Attributes:
        name: What the tokenizer is.
        codebook_size: K.
        quantization_error: Mean over fresh training crops' tokens of |z - z_q|^2, channels summed.
        utilization: Codes chosen at least once over these tokens, as a fraction of K.
        perplexity: exp of the entropy of the code frequencies over these tokens, 1 to K.
        psnr: dB, mean over the held-out regions.
        ssim: Mean over the held-out regions.
        tokens_per_second: Images to indices, encoder included.
        peak_memory: MiB; see `environment.PeakMemory` for what it covers.
    """

    name: str
    codebook_size: int
    quantization_error: float
    utilization: float
    perplexity: float
    psnr: float
    ssim: float
    tokens_per_second: float
    peak_memory: float


@dataclass
class Curve:
    """One value over the steps of one training loop."""

    name: str
    value: str
    steps: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class Strip:
    """One held-out region: the original and what each tokenizer made of it.

    Attributes:
        name: The image's name. source: Where it comes from.
        original: float [3, H, W] in [-1, 1].
        reconstructions: One per finished row: (row name, image like `original`, its PSNR in dB).
    """

    name: str
    source: str
    original: Tensor
    reconstructions: list[tuple[str, Tensor, float]] = field(default_factory=list)


@dataclass
class RunRecord:
    """Everything a page shows.

    Attributes:
        title: The run's name. command: The exact command line.
        settings: The resolved configuration, nested, JSON-able.
        environment: Versions and hardware, by name.
        usage_tokens: Tokens over which usage was counted.
        memory_note: What the column of peak memory covers.
        rows, curves, strips: Results so far.
        usage: Per row the tokens of each code, most used first.
        stopped: How far an interrupted run got; empty for a finished one.
        seconds: Wall-clock time.
    """

    title: str
    command: str
    settings: dict
    environment: dict[str, str]
    usage_tokens: int
    memory_note: str
    rows: list[Row] = field(default_factory=list)
    curves: list[Curve] = field(default_factory=list)
    strips: list[Strip] = field(default_factory=list)
    usage: dict[str, Tensor] = field(default_factory=dict)
    stopped: str = ""
    seconds: float = 0.0


# Attribute of Row, heading of the column, how to print a value.
COLUMNS = (
    ("quantization_error", "quantization error", lambda v: f"{v:.4f}"),
    ("utilization", "utilization", lambda v: f"{100 * v:.1f} %"),
    ("perplexity", "perplexity", lambda v: f"{v:,.0f}"),
    ("psnr", "PSNR (dB)", lambda v: f"{v:.2f}"),
    ("ssim", "SSIM", lambda v: f"{v:.4f}"),
    ("tokens_per_second", "tokens/s", lambda v: f"{v:,.0f}"),
    ("peak_memory", "peak memory (MiB)", lambda v: f"{v:,.0f}"),
)


def even_use(tokens: int, codebook_size: int) -> float:
    """Utilization that N tokens give when every code is equally likely: 1 - exp(-N/K)."""
    from math import exp

    return 1.0 - exp(-tokens / codebook_size)


def notes(record: RunRecord) -> list[str]:
    """What a reader must know to read the table."""
    sizes = sorted({row.codebook_size for row in record.rows})
    even = ", ".join(
        f"{100 * even_use(record.usage_tokens, size):.1f} % at {size:,} codes" for size in sizes
    )
    lines = [
        f"Quantization error, utilization and perplexity: over {record.usage_tokens:,} tokens of "
        f"random crops drawn anew from the training area."
    ]
    if even:
        lines.append(f"Perfectly even use would give a utilization of {even}.")
    lines += [
        "PSNR and SSIM: mean over the held-out regions, which no training crop touches.",
        "tokens/s: images to indices, encoder included.",
        f"Peak memory: {record.memory_note}",
    ]
    return lines


def format_table(record: RunRecord) -> str:
    """The table as aligned text, with its notes below."""
    header = ["tokenizer", *(heading for _, heading, _ in COLUMNS)]
    body = [
        [row.name, *(show(getattr(row, name)) for name, _, show in COLUMNS)] for row in record.rows
    ]
    head, *lines = aligned([header, *body])
    return "\n".join([head, "-" * len(head), *lines, "", *notes(record)])


def write_results(record: RunRecord, folder: Path) -> None:
    """table.csv and results.json: every figure of the run, unrounded."""
    with open(folder / "table.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        names = ["name", "codebook_size", *(name for name, _, _ in COLUMNS)]
        writer.writerow(names)
        writer.writerows([getattr(row, name) for name in names] for row in record.rows)
    described = {
        "title": record.title,
        "command": record.command,
        "stopped": record.stopped,
        "seconds": record.seconds,
        "rows": [asdict(row) for row in record.rows],
        "usage_tokens": record.usage_tokens,
        "held_out": [
            {"name": s.name, "psnr": {name: value for name, _, value in s.reconstructions}}
            for s in record.strips
        ],
        "curves": [asdict(curve) for curve in record.curves],
        "notes": notes(record),
        "settings": record.settings,
        "environment": record.environment,
    }
    text = json.dumps(described, indent=2) + "\n"
    (folder / "results.json").write_text(text, encoding="utf-8")
