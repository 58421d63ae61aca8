"""Draws docs/fvq.png from results/photographs_cpu.csv: codes in use while the rate falls.

Made by `photographs.py --runs fvq linear`.
"""

from __future__ import annotations

from pathlib import Path

from photographs import RESULTS, read, recipe_of

from vqkern.training.engine import rate_factor

RUNS = {"fvq": ("VQBridge", "#2f86d1"), "linear": ("linear map", "#d9772b")}
OUT = Path(__file__).resolve().parent.parent / "docs" / "fvq.png"


def main() -> int:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = [row for row in read(RESULTS / "photographs_cpu.csv") if row["run"] in RUNS]
    optim = recipe_of("fvq", 0).optim
    figure, axes = pyplot.subplots(figsize=(6.4, 3.6), layout="constrained")
    for run, (label, colour) in RUNS.items():
        for seed in sorted({row["seed"] for row in rows if row["run"] == run}):
            mine = [row for row in rows if (row["run"], row["seed"]) == (run, seed)]
            steps = [int(row["step"]) for row in mine]
            used = [100 * float(row["utilization"]) for row in mine]
            axes.plot(steps, used, "o-", color=colour, label=label if seed == "0" else None)
    reachable = [100 * float(row["reachable"]) for row in rows if row["reachable"]]
    axes.axhline(min(reachable), color="#555555", ls="--", lw=1, label="latents as codes")
    rates = axes.twinx()
    rates.plot([rate_factor(optim, step) for step in range(optim.steps)], color="#bbbbbb", lw=1)
    rates.set(ylim=(0, 1.05), ylabel="rate, of its peak")
    axes.set(xlabel="step", ylabel="codes in use, %", title="65,536 codes, three seeds", zorder=1)
    axes.patch.set_visible(False)
    axes.legend(loc="lower left")
    figure.savefig(OUT, dpi=110)
    print(OUT)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
