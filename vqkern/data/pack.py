"""Packing: a source, cropped once, as tar shards of PNG files with an index.

The index, `index.json`, holds the settings, one entry a shard with its sha256, and the damaged
images. The same source and settings give the same bytes, wherever a run was stopped between.
"""

import io
import sys
import tarfile
from pathlib import Path

from torch.utils.data import DataLoader, Dataset

from vqkern.data.loader import CroppedImages
from vqkern.data.quarantine import Damage, Quarantine
from vqkern.data.sources import fingerprint
from vqkern.data.tar import unsafe_name
from vqkern.files import read_json, require_same, sha256_of, whole_file, write_json
from vqkern.terminal import progress_bar

FORMAT = "vqkern-shards"
FORMAT_VERSION = 1
INDEX_FILE = "index.json"


def pack(
    images: CroppedImages,
    out: str | Path,
    shard_size: int = 4096,
    max_share: float = 0.01,
    workers: int = 0,
) -> dict:
    """Writes shards of `shard_size` source images each, and returns the index.

    Damaged images are left out, and named in the index. What an earlier, stopped run of the same
    settings has finished is kept.

    Args:
        images: Source and crop, which must not be random.
        out: Folder, made where missing.
        shard_size: Images a shard, the damaged ones counted.
        max_share: The share of damaged images above which packing stops.
        workers: Processes that decode, crop and compress.

    Raises:
        ValueError: an argument that does not serve, or a folder that holds something else.
        QuarantineError: too many damaged images.
    """
    if images.crop.is_random:
        raise ValueError(f"images: the crop {images.crop.name!r} is random, expected a fixed one")
    if shard_size < 1 or workers < 0:
        raise ValueError(
            f"shard_size and workers: got {shard_size} and {workers}, expected >= 1 and >= 0"
        )
    out = Path(out)
    index = _begin(images, out, shard_size)
    source = images.source
    quarantine = Quarantine(len(source) + len(source.rejected), max_share)
    quarantine.add(Damage(d["name"], d["reason"]) for d in index["damaged"])
    quarantine.add(source.rejected)
    done = len(index["shards"]) * shard_size
    encoded = iter(
        DataLoader(
            _Encoded(images), batch_size=None, sampler=range(done, len(images)), num_workers=workers
        )
    )
    with progress_bar(len(images), min(done, len(images)), "image") as bar:
        for first in range(done, len(images), shard_size):
            path = out / f"shard-{first // shard_size:05d}.tar"
            count = 0
            with whole_file(path) as part:
                with tarfile.open(part, "w", format=tarfile.GNU_FORMAT) as tar:
                    for _ in range(min(shard_size, len(images) - first)):
                        name, content = next(encoded)
                        if isinstance(content, str):
                            for damage in quarantine.add([Damage(name, content)]):
                                bar.write(damage.reason, file=sys.stderr)
                        else:
                            member = tarfile.TarInfo(name + ".png")
                            member.size = len(content)
                            tar.addfile(member, io.BytesIO(content))
                            count += 1
                        bar.update()
            entry = {"file": path.name, "images": count, "bytes": path.stat().st_size}
            index["shards"].append({**entry, "sha256": sha256_of(path)})
            index["damaged"] = [d._asdict() for d in quarantine.damaged]
            write_json(out / INDEX_FILE, index)
    index["complete"] = True
    index["damaged"] = [d._asdict() for d in quarantine.damaged]
    write_json(out / INDEX_FILE, index)
    return index


def check_index(folder: str | Path, sums: bool = False) -> dict | None:
    """The index of a packed folder, checked against its files; None where there is none.

    Args:
        sums: Whether to read every shard and compare its sha256, and not its size alone.

    Raises:
        ValueError: packing is not finished, or a shard is missing, superfluous or not as indexed.
    """
    folder = Path(folder)
    if not (folder / INDEX_FILE).is_file():
        return None
    index = _read_index(folder)
    if not index.get("complete"):
        raise ValueError(f"packed folder {str(folder)!r} is not finished: pack it again")
    known = {entry["file"] for entry in index["shards"]}
    for path in sorted(folder.glob("*.tar")):
        if path.name not in known:
            raise ValueError(f"packed folder {str(folder)!r}: {path.name!r} is not in its index")
    for entry in index["shards"]:
        _check_shard(folder, entry, sums)
    return index


class _Encoded(Dataset):
    """(name, PNG file) of an image, or (name, reason) where it is damaged."""

    def __init__(self, images: CroppedImages) -> None:
        self.images = images

    def __getitem__(self, number: int) -> tuple[str, bytes | str]:
        from PIL import Image

        name = self.images.source.names[number]
        if unsafe_name(name):
            return name, f"image {name!r} cannot be packed: {unsafe_name(name)}"
        pixels = self.images.read(number, None)
        if isinstance(pixels, Damage):
            return tuple(pixels)
        buffer = io.BytesIO()
        # Twice as quick as the default level, at a few per cent of size.
        Image.fromarray(pixels).save(buffer, "PNG", compress_level=3)
        return name, buffer.getvalue()


def _begin(images: CroppedImages, out: Path, shard_size: int) -> dict:
    settings = {
        "crop": images.crop.name,
        "size": images.crop.size,
        "shard_size": shard_size,
        "source": fingerprint(images.source),
        "source_images": len(images),
    }
    out.mkdir(parents=True, exist_ok=True)
    if (out / INDEX_FILE).exists():
        index = _read_index(out)
        require_same(f"packed folder {str(out)!r}", index, settings)
        for entry in index["shards"]:
            _check_shard(out, entry, sums=False)
        return index
    if any(out.glob("*.tar")):
        raise ValueError(f"packed folder {str(out)!r} holds tar files and no {INDEX_FILE}")
    index = {"format": FORMAT, "format_version": FORMAT_VERSION, **settings}
    index |= {"complete": False, "shards": [], "damaged": []}
    write_json(out / INDEX_FILE, index)
    return index


def _read_index(folder: Path) -> dict:
    path = folder / INDEX_FILE
    index = read_json(path, "shard index")
    if (index.get("format"), index.get("format_version")) != (FORMAT, FORMAT_VERSION):
        raise ValueError(f"shard index {str(path)!r} is not of format {FORMAT} {FORMAT_VERSION}")
    shards, damaged = index.get("shards"), index.get("damaged")
    valid = (
        isinstance(shards, list)
        and isinstance(damaged, list)
        and all(_has_types(e, file=str, images=int, bytes=int, sha256=str) for e in shards)
        and all(_has_types(e, name=str, reason=str) for e in damaged)
        and all(not unsafe_name(e["file"]) and "/" not in e["file"] for e in shards)
    )
    if not valid:
        raise ValueError(f"shard index {str(path)!r} has no valid lists of shards and damage")
    return index


def _has_types(entry: object, **types: type) -> bool:
    return isinstance(entry, dict) and all(isinstance(entry.get(k), t) for k, t in types.items())


def _check_shard(folder: Path, entry: dict, sums: bool) -> None:
    path = folder / entry["file"]
    if not path.is_file():
        raise ValueError(f"packed folder {str(folder)!r}: {entry['file']!r} is missing")
    if path.stat().st_size != entry["bytes"] or (sums and sha256_of(path) != entry["sha256"]):
        raise ValueError(
            f"packed folder {str(folder)!r}: {entry['file']!r} is not the file of the index"
        )
