"""Token shards: what `vqkern tokenize` writes, and numpy alone reads.

    manifest.json       format, tokenizer, codebook_size, crop, one entry a shard, damaged images
    tokens-00000.npy    int32 (int64 above 2^31 codes) [images, *index_shape]; -1: not finite
    tokens-00000.json   {"names": [...]}: the image of each row

The files are described in docs/data.md.
"""

import io
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from vqkern.data.quarantine import Damage
from vqkern.data.tar import unsafe_name
from vqkern.files import read_json, require_same, sha256_of, write_json, write_whole

FORMAT = "vqkern-tokens"
FORMAT_VERSION = 1
MANIFEST_FILE = "manifest.json"


class TokenWriter:
    """Writes token shards into a folder; goes on where an earlier run of the same settings stopped.

    Args:
        folder: Made where missing.
        settings: What the shards depend on: a run with other settings is refused.

    Raises:
        ValueError: the folder was begun with other settings, or its shards are not as written.
    """

    def __init__(self, folder: str | Path, settings: dict) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        if (self.folder / MANIFEST_FILE).exists():
            self.manifest = read_manifest(self.folder)
            require_same(f"token folder {str(folder)!r}", self.manifest, settings)
            for entry in self.manifest["shards"]:
                _check_entry(self.folder, entry)
            return
        if any(self.folder.glob("tokens-*")):
            raise ValueError(f"token folder {str(folder)!r} holds shards and no {MANIFEST_FILE}")
        self.manifest = {"format": FORMAT, "format_version": FORMAT_VERSION, **settings}
        state = {"complete": False, "images": 0, "not_finite": 0, "index_shape": None}
        self.manifest |= {**state, "shards": [], "damaged": []}
        write_json(self.folder / MANIFEST_FILE, self.manifest)

    @property
    def finished(self) -> int:
        """Shards that are there."""
        return len(self.manifest["shards"])

    @property
    def damaged(self) -> list[Damage]:
        """Damaged images of the finished shards."""
        return [Damage(entry["name"], entry["reason"]) for entry in self.manifest["damaged"]]

    def add(self, index: list[np.ndarray], names: list[str], damaged: list[Damage]) -> None:
        """Writes the next shard, then the manifest that knows it.

        Args:
            index: Indices [images, *index_shape] in parts.
            names: One a row.
            damaged: All images known as damaged by now.

        Raises:
            ValueError: the indices' shape is not that of the earlier shards, or one is outside the
                codebook.
        """
        manifest = self.manifest
        if index:
            rows = np.concatenate(index)
            self._check(rows)
            manifest["index_shape"] = list(rows.shape[1:])
        else:
            rows = np.zeros((0, *(manifest["index_shape"] or ())), np.int64)
        buffer = io.BytesIO()
        np.save(buffer, rows.astype(manifest["dtype"]), allow_pickle=False)
        stem = f"tokens-{self.finished:05d}"
        tokens, sidecar = self.folder / f"{stem}.npy", self.folder / f"{stem}.json"
        write_whole(tokens, buffer.getvalue())
        write_whole(sidecar, json.dumps({"names": names}).encode("ascii"))
        entry = {"file": tokens.name, "names": sidecar.name, "images": len(names)}
        entry |= {"sha256": sha256_of(tokens), "names_sha256": sha256_of(sidecar)}
        manifest["shards"].append(entry)
        manifest["images"] += len(names)
        manifest["not_finite"] += int((rows < 0).sum())
        self._write(damaged)

    def finish(self, damaged: list[Damage]) -> None:
        """Marks the folder as complete."""
        self.manifest["complete"] = True
        self._write(damaged)

    def _check(self, rows: np.ndarray) -> None:
        shape, codes = self.manifest["index_shape"], self.manifest["codebook_size"]
        if shape is not None and list(rows.shape[1:]) != shape:
            raise ValueError(
                f"index: got shape {list(rows.shape[1:])}, earlier shards have {shape}"
            )
        if rows.size and (rows.min() < -1 or (codes is not None and rows.max() >= codes)):
            raise ValueError(f"index: got {rows.min()} to {rows.max()}, expected -1 to {codes} - 1")

    def _write(self, damaged: list[Damage]) -> None:
        self.manifest["damaged"] = [d._asdict() for d in damaged]
        write_json(self.folder / MANIFEST_FILE, self.manifest)


def read_manifest(folder: str | Path) -> dict:
    """The manifest of a token folder.

    Raises:
        ValueError: it is missing, damaged, or of another format.
    """
    path = Path(folder) / MANIFEST_FILE
    manifest = read_json(path, "token manifest")
    if (manifest.get("format"), manifest.get("format_version")) != (FORMAT, FORMAT_VERSION):
        raise ValueError(f"token manifest {str(path)!r} is not of format {FORMAT} {FORMAT_VERSION}")
    shards, damaged = manifest.get("shards"), manifest.get("damaged")
    texts = ("file", "names", "sha256", "names_sha256")
    valid = (
        isinstance(shards, list)
        and isinstance(damaged, list)
        and all(isinstance(e, dict) and isinstance(e.get("images"), int) for e in shards)
        and all(isinstance(e.get(k), str) for e in shards for k in texts)
        and all(not unsafe_name(e[k]) and "/" not in e[k] for e in shards for k in texts[:2])
        and all(isinstance(e, dict) for e in damaged)
        and all(isinstance(e.get(k), str) for e in damaged for k in ("name", "reason"))
        and manifest.get("dtype") in ("int32", "int64")
        and {"codebook_size", "index_shape", "images", "not_finite"} <= manifest.keys()
    )
    if not valid:
        raise ValueError(f"token manifest {str(path)!r} has no valid lists of shards and damage")
    return manifest


def read_tokens(folder: str | Path) -> Iterator[tuple[list[str], np.ndarray]]:
    """Names and indices of each shard in order, checked against the manifest.

    Raises:
        ValueError: tokenizing is not finished, or a file is not as the manifest says.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    if not manifest.get("complete"):
        raise ValueError(f"token folder {str(folder)!r} is not finished: run vqkern tokenize again")
    for entry in manifest["shards"]:
        _check_entry(folder, entry)
        names = read_json(folder / entry["names"], "token names").get("names")
        index = np.load(folder / entry["file"], allow_pickle=False)
        if not isinstance(names, list) or len(names) != len(index):
            raise ValueError(f"token folder {str(folder)!r}: {entry['file']!r} has other rows")
        yield names, index


def _check_entry(folder: Path, entry: dict) -> None:
    for file, digest in (("file", "sha256"), ("names", "names_sha256")):
        path = folder / entry[file]
        if not path.is_file() or sha256_of(path) != entry[digest]:
            raise ValueError(
                f"token folder {str(folder)!r}: {entry[file]!r} is missing or not as it was written"
            )
