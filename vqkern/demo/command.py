"""Make a tokenizer with a large codebook from a few photographs, in minutes on a CPU.

Trains a base tokenizer with a small codebook, transplants large codebooks into it in three ways,
adapts the decoder to the best, and writes a table and a page that show what each step gained.
"""

import argparse
import importlib.util
import shlex
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch

from vqkern.demo.settings import DemoSettings, quick
from vqkern.demo.stages import Demo
from vqkern.machine import add_device_argument, choose_device
from vqkern.report import RunRecord, format_table, write_page, write_results

CAVEAT = (
    "A few photographs are an illustration, not a benchmark: the tokenizers are small, are trained "
    "for minutes and know these images only. Part of what stage II gains is that of training the "
    "decoder longer, whatever the codes. Compare methods on a real data set."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `vqkern demo`."""
    default = DemoSettings()
    parser.add_argument("--out", default=default.out, help="folder for the run (%(default)s)")
    parser.add_argument("--data", help="folder of your own images, in place of the photographs")
    size = f"codes of the large codebooks ({default.codebook_size})"
    parser.add_argument("--codebook-size", type=int, help=size)
    parser.add_argument("--seed", type=int, default=default.seed, help="random seed (%(default)s)")
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's choice)")
    add_device_argument(parser)
    quickly = "a trial of about 20 seconds, with codebooks of 128 and 2,048 codes"
    parser.add_argument("--quick", action="store_true", help=quickly)


def run(args: argparse.Namespace) -> int:
    """Runs the demonstration; 0, or 130 after Ctrl-C.

    Raises:
        ValueError, OSError: an option, an image or the output folder does not serve.
    """
    settings = DemoSettings(
        seed=args.seed, threads=args.threads, device=args.device, data=args.data, out=args.out
    )
    if args.quick:
        settings = quick(settings)
    if args.codebook_size is not None:
        settings = replace(settings, codebook_size=args.codebook_size)
    command = shlex.join(["vqkern", *sys.argv[1:]])
    return run_demo(settings, command)


def run_demo(settings: DemoSettings, command: str) -> int:
    """`run` with resolved settings; `command` is what the page shows."""
    device = _check(settings)
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    out = Path(settings.out)
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / "report.html").touch()
    except OSError as error:
        raise ValueError(f"--out: cannot write a run into {str(out)!r}: {error.strerror}") from None
    demo = Demo(settings, device, out, command)
    start = time.perf_counter()
    try:
        demo.run()
    except KeyboardInterrupt:
        demo.record.stopped = (
            f"Interrupted during {demo.stage}, {demo.done} of {demo.steps} steps done; "
            f"{len(demo.record.rows)} of {len(demo.names)} tokenizers are finished."
        )
        demo.save_unfinished()
    finally:
        demo.bar.close()
    demo.record.seconds = time.perf_counter() - start
    write_results(demo.record, out)
    write_page(demo.record, out / "report.html", headline(demo.record), CAVEAT)
    print(format_table(demo.record))
    print()
    print(CAVEAT)
    print(f"Page: {out / 'report.html'}   figures: {out / 'results.json'}, {out / 'table.csv'}")
    if demo.record.stopped:
        print(demo.record.stopped, file=sys.stderr)
        return 130
    return 0


def headline(record: RunRecord) -> str:
    """The run's result in one sentence, from its rows."""
    rows = record.rows
    if len(rows) < 5:
        return f"{len(rows)} of 5 tokenizers are finished."
    base, vanilla, drawn, _, best = rows
    return (
        f"From {base.codebook_size:,} codes to {best.codebook_size:,} by transplant: held-out PSNR "
        f"{base.psnr:.2f} to {best.psnr:.2f} dB, {100 * best.utilization:.1f} % of codes used "
        f"(vanilla {100 * vanilla.utilization:.1f} %), quantization error "
        f"{best.quantization_error:.3f} (codes drawn from the features "
        f"{drawn.quantization_error:.3f})."
    )


def _check(settings: DemoSettings) -> torch.device:
    """Checks what a user can get wrong, and gives the device to run on."""
    if settings.codebook_size < 2:
        raise ValueError(
            f"--codebook-size: expected at least 2 codes, got {settings.codebook_size}"
        )
    if settings.seed < 0:
        raise ValueError(f"--seed: expected a number >= 0, got {settings.seed}")
    if settings.threads is not None and settings.threads < 1:
        raise ValueError(f"--threads: expected at least 1, got {settings.threads}")
    device = choose_device(settings.device, "--device")
    for package in ("tqdm", "matplotlib", "PIL"):
        if importlib.util.find_spec(package) is None:
            raise ValueError(
                f"the demo needs {package}, which is not installed: pip install 'vqkern[demo]'"
            )
    return device
