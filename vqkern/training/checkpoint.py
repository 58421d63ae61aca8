"""Checkpoints that survive a kill at any moment, a full disk, and a damaged file.

A checkpoint is a folder `step-00000120`: tensors in safetensors files, written by
torch.distributed.checkpoint, and `manifest.json` with the size and sha256 of every file. It is
written under another name, flushed to the disk, and renamed last, so that a folder of this name is
complete. Nothing in it is a pickle: tensors and JSON only.
"""

import re
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import (
    HuggingFaceStorageReader,
    HuggingFaceStorageWriter,
)

from vqkern.distributed import least_over_ranks, number_of_ranks, this_rank
from vqkern.files import flush, read_json, sha256_of, write_json
from vqkern.terminal import one_line

MANIFEST = "manifest.json"
FORMAT = "vqkern-checkpoint"
FORMAT_VERSION = 1
_COMPLETE = re.compile(r"step-(\d{8})")
_UNFINISHED = ".part"
_DAMAGED = "-damaged"

Say = Callable[[str], None]


class CheckpointError(OSError):
    """A checkpoint could not be written; the earlier ones are as they were."""


def save_checkpoint(
    folder: Path, step: int, tensors: dict[str, Tensor], described: dict, *, keep: int = 2
) -> Path:
    """Writes `folder/step-<step>`; called by all ranks.

    Args:
        tensors: By name. A name that several ranks have stands for the same values there and is
            written once; a name that one rank alone has, such as its random state, is written too.
        described: Anything that JSON can hold; `read_checkpoint` gives it back.
        keep: Complete checkpoints to leave, this one among them; older ones are removed.

    Raises:
        CheckpointError: on all ranks, if one could not write. The earlier checkpoints are kept.
    """
    final = folder / f"step-{step:08d}"
    part = final.with_name(final.name + _UNFINISHED)
    _together(lambda: _make_room(folder, part))
    # Views and other memory formats become plain arrays, which is all that a file can hold.
    plain = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    try:
        _together(lambda: _write(part, plain), on_all=True)
        _together(lambda: _complete(part, final, step, described))
    except CheckpointError:
        if this_rank() == 0:  # what did not fit must not take up the room
            shutil.rmtree(part, ignore_errors=True)
        raise
    _together(lambda: _remove_old(folder, keep))
    return final


def newest_checkpoint(folder: Path, say: Say = print) -> Path | None:
    """The newest complete checkpoint in `folder` whose files are whole; None if there is none.

    A damaged one is named by `say`, with what is wrong with it, and set aside under another name,
    so that it does not count among those to keep. Called by all ranks, which agree on the answer of
    the first.
    """
    found: Path | None = None
    if this_rank() == 0:
        there = complete_checkpoints(folder)
        for path in reversed(there):
            problem = damage(path)
            if problem is None:
                found = path
                break
            say(f"checkpoint {path} is damaged and passed over: {problem}")
            _set_aside(path)
        if there and found is None:
            say(f"no checkpoint in {folder} is whole: beginning at step 0")
    if number_of_ranks() > 1:
        answer = [None if found is None else found.name]
        dist.broadcast_object_list(answer, src=0)
        found = None if answer[0] is None else folder / answer[0]
    return found


def complete_checkpoints(folder: Path) -> list[Path]:
    """The folders marked complete, oldest first."""
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if _COMPLETE.fullmatch(p.name) and p.is_dir())


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint's files, or None: sizes and sha256 against the manifest."""
    try:
        manifest = _read_manifest(path)
    except ValueError as error:
        return str(error)
    for name, wanted in manifest["files"].items():
        file = path / name
        if not file.is_file():
            return f"{name} is missing"
        size = file.stat().st_size
        if size != wanted["bytes"]:
            return f"{name} has {size} bytes, expected {wanted['bytes']}"
        if sha256_of(file) != wanted["sha256"]:
            return f"{name} does not have the sha256 of the manifest"
    return None


def described_in(path: Path) -> dict:
    """What `save_checkpoint` was given as `described`.

    Raises:
        ValueError: the manifest is missing, damaged or of another format version.
    """
    return _read_manifest(path)["described"]


def read_checkpoint(path: Path, into: dict[str, Tensor]) -> None:
    """Copies a checkpoint's tensors into those of `into`, by name; called by all ranks.

    Raises:
        ValueError: a tensor is missing, or has another shape or dtype. Nothing is changed then.
    """
    reader = HuggingFaceStorageReader(str(path))
    stored = reader.read_metadata().state_dict_metadata
    for name, tensor in into.items():
        if name not in stored:
            raise ValueError(f"checkpoint {path} holds no {name!r}: it is of another recipe")
        size, dtype = stored[name].size, stored[name].properties.dtype
        if size != tensor.shape or dtype != tensor.dtype:
            raise ValueError(
                f"checkpoint {path}: {name!r} is {dtype} {list(size)}, expected {tensor.dtype} "
                f"{list(tensor.shape)}: it is of another recipe"
            )
    with _one_process_is_meant():
        dcp.load(into, storage_reader=reader, no_dist=number_of_ranks() == 1)


def names_in(path: Path) -> set[str]:
    """Names of the tensors of a checkpoint."""
    return set(HuggingFaceStorageReader(str(path)).read_metadata().state_dict_metadata)


def _set_aside(path: Path) -> None:
    aside = path.with_name(path.name + _DAMAGED)
    if aside.exists():
        shutil.rmtree(aside)
    path.rename(aside)


def _make_room(folder: Path, part: Path) -> None:
    """Removes what a killed save left behind, and makes the folder that this one fills."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob(f"*{_UNFINISHED}"):
        shutil.rmtree(old)
    part.mkdir()


def _write(part: Path, tensors: dict[str, Tensor]) -> None:
    writer = HuggingFaceStorageWriter(str(part), save_distributed=True)
    with _one_process_is_meant():
        dcp.save(tensors, storage_writer=writer, no_dist=number_of_ranks() == 1)


@contextmanager
def _one_process_is_meant() -> Iterator[None]:
    """Without the warning that torch.distributed does not run, which is a choice here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


def _complete(part: Path, final: Path, step: int, described: dict) -> None:
    files = {}
    for file in sorted(part.iterdir()):
        flush(file)
        files[file.name] = {"bytes": file.stat().st_size, "sha256": sha256_of(file)}
    manifest = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "step": step,
        "ranks": number_of_ranks(),
        "files": files,
        "described": described,
    }
    write_json(part / MANIFEST, manifest)
    flush(part)
    part.rename(final)
    flush(final.parent)


def _remove_old(folder: Path, keep: int) -> None:
    for old in complete_checkpoints(folder)[:-keep]:
        # Renamed first: a kill in the middle must not leave half a checkpoint that looks complete.
        gone = old.with_name(old.name + _UNFINISHED)
        old.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)  # what is left goes with the next save


def _together(action: Callable[[], None], on_all: bool = False) -> None:
    """Runs `action`, on the first rank or on all; if it fails on one, all raise."""
    problem = None
    try:
        if on_all or this_rank() == 0:
            action()
    except (Exception, CheckpointException) as error:  # torch derives its own from BaseException
        problem = error
    went_well = torch.tensor(int(problem is None))
    least_over_ranks(went_well)
    if problem is not None:
        raise CheckpointError(_reason(problem)) from problem
    if not went_well:
        raise CheckpointError("another rank could not write")


def _reason(error: BaseException) -> str:
    """The first line of what went wrong; torch wraps the errors of ranks in one of its own."""
    failures = getattr(error, "failures", None)
    if failures:
        wrapped = next(iter(failures.values()))
        error = wrapped[0] if isinstance(wrapped, tuple) else wrapped
    return one_line(error)


def _read_manifest(path: Path) -> dict:
    manifest = read_json(path / MANIFEST, "manifest")
    if manifest.get("format") != FORMAT:
        raise ValueError(f"{MANIFEST} is not a checkpoint's")
    if manifest.get("format_version") != FORMAT_VERSION:
        raise ValueError(
            f"{MANIFEST} has format version {manifest.get('format_version')!r}, "
            f"expected {FORMAT_VERSION}"
        )
    return manifest
