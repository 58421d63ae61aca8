"""Files that exist whole or not at all, their sums, and JSON in them."""

import errno
import hashlib
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vqkern.terminal import one_line

MAX_JSON_BYTES = 2**28


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A name beside `path` to write under; in the end the file is flushed and takes its own name.

    A kill or a power failure leaves the old file or the new one. So does an exception, which leaves
    the unfinished file under the other name as well.
    """
    part = path.with_name(path.name + ".part")
    part.unlink(missing_ok=True)
    part.touch()  # some writers make files that nobody else may read: the mode is the user's
    mode = part.stat().st_mode
    yield part
    part.chmod(mode)
    flush(part)
    part.replace(path)


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file so that a kill or a power failure leaves the old one or the new one."""
    with whole_file(path) as part:
        part.write_bytes(content)


def write_json(path: Path, value: dict) -> None:
    """`write_whole` of JSON with two spaces of indentation."""
    write_whole(path, (json.dumps(value, indent=2) + "\n").encode("ascii"))


def flush(path: Path) -> None:
    """Makes the disk hold what a file, or a folder's list of names, holds in memory."""
    # Windows flushes no file that is open for reading alone, and no system writes to a folder.
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def require_apart(out: str | Path, data: str | Path | None) -> None:
    """What is written must not lie among what is read: the next time it would be read, too.

    Raises:
        ValueError: `out` is `data`, or inside of it.
    """
    if data is None:
        return
    inner, outer = Path(out).resolve(), Path(data).resolve()
    if inner == outer or outer in inner.parents:
        raise ValueError(
            f"--out {str(out)!r} lies in --data {str(data)!r}, where it would be read as data the "
            "next time; choose a folder outside"
        )


@contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Within, no other process is in here for the same folder, which is made where missing.

    Raises:
        ValueError: another process is; it is named.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "a+", encoding="utf-8") as lock:
        try:
            import fcntl
        except ImportError:  # not on Windows
            yield
            return
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                yield  # a file system without locks
                return
            lock.seek(0)
            holder = lock.read().strip() or "another process"
            raise ValueError(f"{folder} is in use by {holder}") from error
        lock.seek(0)
        lock.truncate()
        lock.write(f"process {os.getpid()} on {socket.gethostname()}")
        lock.flush()
        yield


def refused(error: Exception) -> str:
    """What a pickle asked for that `torch.load` refused, without torch's advice to allow it."""
    text = one_line(error, 4000)
    for sign in (
        "Unsupported global: GLOBAL ",
        "unsupported GLOBAL ",
        "Unsupported class ",
        "Unsupported operand ",
    ):
        if sign in text:
            name = text.split(sign, 1)[1].split(" ", 1)[0].rstrip(".")
            return (
                f"This one asks for {name}. Where you trust it, load it with the program that "
                f"wrote it and save the state dict alone"
            )
    if "weights_only" in text:
        return "This one is a pickle of something else than tensors"
    return f"This one: {text[:200]}"


def read_json(path: Path, what: str, most: int = MAX_JSON_BYTES) -> dict:
    """A JSON object of at most `most` bytes; `what` names the file in messages.

    Raises:
        ValueError: the file cannot be read, is too large, or holds anything else.
    """
    try:
        if path.stat().st_size > most:
            raise ValueError(f"more than {most} bytes")
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{what} {str(path)!r} cannot be read: {one_line(error, 300)}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{what} {str(path)!r} is not a JSON object")
    return value


def sha256_of(path: str | Path) -> str:
    """The file's sha256 in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**22):
            digest.update(block)
    return digest.hexdigest()


def require_same(what: str, found: dict, wanted: dict) -> None:
    """Refuses to continue work that was begun with other settings.

    Raises:
        ValueError: names the first setting that differs.
    """
    for name, value in wanted.items():
        if found.get(name) != value:
            raise ValueError(
                f"{what} was begun with {name} = {found.get(name)!r}, now it is {value!r}; "
                f"use the same settings or another folder"
            )
