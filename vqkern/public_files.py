"""Weight files that others publish: found locally, told by their sha256, never downloaded."""

from dataclasses import dataclass
from pathlib import Path

from vqkern.files import sha256_of


@dataclass(frozen=True)
class PublicFile:
    """A file by its name, where it can be had, and what it must hash to.

    `sha256` may be None where no digest has been published; `find` then takes any file.
    """

    name: str
    address: str
    sha256: str | None

    def find(self, path: str | Path, purpose: str) -> Path:
        """The file at `path`, or in the folder `path`.

        Args:
            purpose: What needs it; errors begin with it.

        Raises:
            ValueError: it is missing or another file; the message names it, its address and sha256.
        """
        path = Path(path)
        path = path / self.name if path.is_dir() else path
        if not path.is_file():
            raise ValueError(f"{purpose} needs {self}, and {str(path)!r} is not there")
        if self.sha256 is not None and sha256_of(path) != self.sha256:
            raise ValueError(f"{purpose}: {str(path)!r} is another file than {self}")
        return path

    def __str__(self) -> str:
        digest = "" if self.sha256 is None else f" (sha256 {self.sha256})"
        return f"{self.name} from {self.address}{digest}"
