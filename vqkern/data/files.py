"""Files that exist whole or not at all, and their sums."""

import hashlib
import json
import os
from pathlib import Path

MAX_JSON_BYTES = 2**28


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file so that a kill or a power failure leaves the old one or the new one."""
    part = path.with_name(path.name + ".part")
    with open(part, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def write_json(path: Path, value: dict) -> None:
    """`write_whole` of JSON with two spaces of indentation."""
    write_whole(path, (json.dumps(value, indent=2) + "\n").encode("ascii"))


def read_json(path: Path, what: str) -> dict:
    """A JSON object.

    Raises:
        ValueError: the file cannot be read, is too large, or holds anything else.
    """
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise ValueError(f"more than {MAX_JSON_BYTES} bytes")
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{what} {str(path)!r} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{what} {str(path)!r} is not a JSON object")
    return value


def sha256_of(path: Path) -> str:
    """The file's sha256 in hexadecimal."""
    with open(path, "rb") as file:
        digest = hashlib.sha256()
        while block := file.read(2**20):
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


def progress_bar(total: int, done: int, unit: str):
    """A bar on stderr with rate and remaining time; nothing where stderr is not a terminal.

    Raises:
        ValueError: tqdm is not installed.
    """
    try:
        from tqdm import tqdm
    except ImportError as error:
        raise ValueError(
            "the progress bar needs tqdm, which is not installed: pip install 'vqkern[data]'"
        ) from error
    return tqdm(total=total, initial=done, unit=unit, disable=None, dynamic_ncols=True)
