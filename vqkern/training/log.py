"""What a person sees of a run: metrics.jsonl, a line or a bar with the time left, pictures."""

import json
import time
from pathlib import Path

import torch
from torch import Tensor

from vqkern.files import write_whole
from vqkern.terminal import progress_bar, say

METRICS = "metrics.jsonl"


class Log:
    """Writes RUN/metrics.jsonl, one object a line, and tells the terminal. For the first rank.

    A disk that is full stops the file, not the training.

    Args:
        out: Folder of the run.
        start: Step from which the run goes on; later lines of an interrupted run are dropped.
        steps: Steps in all.
        batch: Images a step.
        tensorboard: Whether RUN/tensorboard gets the same.

    Raises:
        ValueError: tensorboard is asked for, and not installed; or tqdm is not.
    """

    def __init__(
        self, out: Path, start: int, steps: int, batch: int, tensorboard: bool = False
    ) -> None:
        self.writer = _tensorboard(out / "tensorboard", start) if tensorboard else None

        self.path, self.steps, self.batch = out / METRICS, steps, batch
        _drop_after(self.path, start)
        self.bar = progress_bar(steps, start, "step", leave=False)
        self.first, self.began = start, time.perf_counter()
        self.last, self.last_time = start, self.began
        self.failed = False

    def step(self) -> None:
        self.bar.update()

    def write(self, step: int, values: dict[str, float]) -> None:
        """One line of the file and of the terminal, with speed and remaining time."""
        now = time.perf_counter()
        speed = (step - self.last) * self.batch / max(now - self.last_time, 1e-9)
        self.last, self.last_time = step, now
        left = (self.steps - step) * (now - self.began) / max(step - self.first, 1)
        record = {"step": step, **values, "images_per_second": round(speed, 2)}
        shown = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
        self.say(
            f"step {step}/{self.steps}  {shown}  {speed:.1f} images/s  "
            f"{_clock(now - self.began)} gone, {_clock(left)} left"
        )
        if self.writer is not None:
            for name, value in record.items():
                if name != "step":
                    self.writer.add_scalar(name, value, step)
        try:
            with open(self.path, "a", encoding="utf-8") as stream:
                stream.write(json.dumps(record) + "\n")
        except OSError as error:
            if not self.failed:
                self.say(f"{self.path} cannot be written: {error}; training goes on")
            self.failed = True

    def picture(self, step: int, path: Path) -> None:
        """A picture that was saved."""
        if self.writer is not None:
            from vqkern.data import read_image

            self.writer.add_image("samples", read_image(path), step)

    def say(self, text: str) -> None:
        """A line above the bar."""
        say(text, self.bar)

    def close(self) -> None:
        self.bar.close()
        if self.writer is not None:
            self.writer.close()


def _tensorboard(folder: Path, start: int):
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ValueError(
            "log.tensorboard: the tensorboard package is not installed: "
            "pip install 'vqkern[tensorboard]', or train without it: metrics.jsonl has the same"
        ) from error
    # What an interrupted run logged after its checkpoint is about to be logged again.
    return SummaryWriter(str(folder), purge_step=start + 1)


def save_grid(path: Path, originals: Tensor, reconstructions: Tensor) -> None:
    """A PNG with the images in one row and their reconstructions below; in [-1, 1]."""
    from PIL import Image

    rows = [torch.cat(list(images.cpu()), dim=2) for images in (originals, reconstructions)]
    grid = torch.cat(rows, dim=1).clamp(-1, 1)
    pixels = ((grid + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.numpy()).save(path)


def _drop_after(path: Path, step: int) -> None:
    """Removes what was logged after the checkpoint, which is about to be logged again."""
    if not path.is_file():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except (ValueError, KeyError, TypeError):  # the line in which a kill came
            continue
    write_whole(path, "".join(f"{line}\n" for line in kept).encode("utf-8"))


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
