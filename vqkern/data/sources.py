"""Where images come from: folders, tar shards, volumes. A source has names and gives RGB images.

A source is a sequence with a fixed order. It is read by number, from any process, holds no open
file, and never holds more than the names in memory.
"""

import hashlib
import io
import os
import stat
from pathlib import Path
from typing import Protocol

from vqkern.data.images import SUFFIXES, decode_image
from vqkern.data.quarantine import Damage
from vqkern.data.tar import MAX_MEMBER_BYTES, Listing, list_members, read_member

VOLUME_SUFFIXES = (".nii", ".nii.gz", ".npy")


class ImageSource(Protocol):
    """What the loaders and commands need of a source.

    Attributes:
        names: One name an image, all different, in the source's order.
        rejected: What was left out when the source was listed, with reasons.
    """

    names: list[str]
    rejected: list[Damage]

    def __len__(self) -> int: ...

    def load(self, number: int):
        """Image `number`, a Pillow image of mode RGB.

        Raises:
            ValueError, OSError: it cannot be read.
        """
        ...


class Folder:
    """The images of a folder and of the folders in it, sorted by relative path.

    Links to files and folders are followed, as data sets are often made of them; hidden files and
    folders are left out.

    Args:
        root: The folder.
        max_bytes: Larger files count as damaged.

    Raises:
        ValueError: `root` is not a folder, or holds no image.
    """

    def __init__(self, root: str | Path, max_bytes: int = MAX_MEMBER_BYTES) -> None:
        self.root, self.max_bytes = Path(root), max_bytes
        self.rejected: list[Damage] = []
        self.names = find_files(self.root, SUFFIXES)
        if not self.names:
            raise ValueError(
                f"image folder {str(root)!r} holds no image; "
                f"expected files ending in {', '.join(SUFFIXES)}"
            )

    def __len__(self) -> int:
        return len(self.names)

    def load(self, number: int):
        """See `ImageSource.load`."""
        path = self.root / self.names[number]
        require_regular(path, self.max_bytes)
        return decode_image(path)


class TarShards:
    """The images of plain tar files, read in place; members that are not images are left out.

    Args:
        paths: Tar files; images keep this order and their order in the files. Names are those of
            the files and of the members, `shard-0.tar/a.png`.
        max_member_bytes: Larger members are rejected.

    Raises:
        ValueError: no files, two files of one name, no image in them, or a file that `list_members`
            refuses.
    """

    def __init__(self, paths: list[str | Path], max_member_bytes: int = MAX_MEMBER_BYTES) -> None:
        self.paths = [Path(path) for path in paths]
        if len({path.name for path in self.paths}) != len(self.paths):
            raise ValueError("paths: two tar files have one name")
        self.names: list[str] = []
        self.rejected: list[Damage] = []
        self._places = []
        for number, path in enumerate(self.paths):
            listing: Listing = list_members(path, max_member_bytes)
            self.rejected += [Damage(f"{path.name}/{d.name}", d.reason) for d in listing.rejected]
            for member in listing.members:
                if _is_image(member.name):
                    self.names.append(f"{path.name}/{member.name}")
                    self._places.append((number, member))
        if not self.names:
            shown = ", ".join(repr(str(path)) for path in self.paths[:3])
            raise ValueError(f"paths: expected tar files with images, got {shown or 'none'}")

    def __len__(self) -> int:
        return len(self.names)

    def load(self, number: int):
        """See `ImageSource.load`."""
        shard, member = self._places[number]
        content = read_member(self.paths[shard], member)
        return decode_image(io.BytesIO(content), self.names[number])


def open_source(path: str | Path) -> ImageSource:
    """The source that a path stands for.

    A tar file or a folder of them: `TarShards`, sorted by name. A folder with volumes (.nii,
    .nii.gz, .npy): `vqkern.data.VolumeSlices`. Any other folder: `Folder`.

    Raises:
        ValueError: nothing is there; images, shards and volumes are mixed; packed shards are not as
            their index says.
    """
    path = Path(path)
    if not path.exists():
        raise ValueError(f"data {str(path)!r} does not exist")
    if path.is_file():
        if path.suffix.lower() != ".tar":
            raise ValueError(f"data {str(path)!r}: expected a folder or a .tar file")
        return TarShards([path])
    suffixes = {"tar shards": (".tar",), "volumes": VOLUME_SUFFIXES, "images": SUFFIXES}
    files = find_files(path, sum(suffixes.values(), ()))
    kinds = {
        kind: [name for name in files if name.lower().endswith(ends)]
        for kind, ends in suffixes.items()
    }
    present = [kind for kind, names in kinds.items() if names]
    if len(present) > 1:
        raise ValueError(
            f"data {str(path)!r} mixes {' and '.join(present)}; expected one kind in a folder"
        )
    if kinds["tar shards"]:
        from vqkern.data.pack import check_index

        check_index(path)
        return TarShards([path / name for name in kinds["tar shards"]])
    if kinds["volumes"]:
        from vqkern.data.volumes import VolumeSlices

        return VolumeSlices([path / name for name in kinds["volumes"]], root=path)
    return Folder(path)


def fingerprint(source: ImageSource) -> str:
    """A sha256 of the source's names and order: another value is another data set."""
    digest = hashlib.sha256()
    for name in source.names:
        digest.update(name.encode("utf-8", "surrogateescape") + b"\0")
    return digest.hexdigest()


def find_files(root: Path, suffixes: tuple[str, ...]) -> list[str]:
    """Relative paths below `root` with one of the suffixes, sorted; hidden ones are left out.

    Raises:
        ValueError: `root` is not a folder.
    """
    if not root.is_dir():
        raise ValueError(f"data folder {str(root)!r} is not a folder")
    found, seen = [], set()
    for folder, folders, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:  # a link that leads back
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        relative = Path(folder).relative_to(root)
        found += [
            (relative / name).as_posix()
            for name in files
            if name.lower().endswith(suffixes) and not name.startswith(".")
        ]
    return sorted(found)


def require_regular(path: Path, max_bytes: int) -> None:
    """Refuses what must not be opened: a pipe would block for ever, a huge file fill the memory.

    Raises:
        ValueError: not a regular file, or too large. OSError: it is not there.
    """
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise ValueError(f"image {str(path)!r} is not a regular file")
    if status.st_size > max_bytes:
        raise ValueError(
            f"image {str(path)!r} has {status.st_size} bytes, more than the {max_bytes} allowed"
        )


def _is_image(name: str) -> bool:
    last = name.rsplit("/", 1)[-1]
    return last.lower().endswith(SUFFIXES) and not last.startswith(".")
