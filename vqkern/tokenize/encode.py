"""Images of a source to token shards: workers decode while the encoder runs."""

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from torch import nn

from vqkern.data.crops import to_float
from vqkern.data.loader import CroppedImages, ordered_batches
from vqkern.data.quarantine import Quarantine
from vqkern.data.sources import fingerprint
from vqkern.files import sha256_of
from vqkern.terminal import progress_bar
from vqkern.tokenize.shards import TokenWriter
from vqkern.tokenizers.pretrained import CONFIG_FILE, WEIGHTS_FILE


def tokenize(
    tokenizer: nn.Module,
    images: CroppedImages,
    out: str | Path,
    *,
    tokenizer_sha256: dict[str, str] | None = None,
    batch_size: int = 32,
    shard_size: int = 1024,
    workers: int = 0,
    max_share: float = 0.01,
) -> dict:
    """Encodes all images of a source into token shards and returns the manifest.

    Damaged images are left out and named in the manifest. A shard holds `shard_size` successive
    images of the source without the damaged ones; what an earlier, stopped run of the same settings
    has finished is kept, and the result is the same as without the stop.

    Args:
        tokenizer: With `encode` (float32 [B, 3, S, S] in [-1, 1] to integers [B, ...]), in eval
            mode, on the device that is to be used.
        images: Source and crop, which must not be random.
        out: Folder, made where missing.
        tokenizer_sha256: sha256 of the tokenizer's files by name, for the manifest.
        batch_size: Images the encoder gets at once.
        shard_size: Images a shard.
        workers: Processes that decode while the encoder runs.
        max_share: The share of damaged images above which the run stops.

    Raises:
        ValueError: an argument that does not serve, or a folder that was begun otherwise.
        QuarantineError: too many damaged images.
    """
    if batch_size < 1 or shard_size < 1:
        raise ValueError(
            f"batch_size and shard_size: got {batch_size} and {shard_size}, expected >= 1"
        )
    if images.crop.is_random:
        raise ValueError(f"images: the crop {images.crop.name!r} is random, expected a fixed one")
    codes = _codebook_size(tokenizer.quantizer)
    writer = TokenWriter(
        out,
        {
            "tokenizer": {"sha256": tokenizer_sha256 or {}},
            "codebook_size": codes,
            "dtype": "int32" if codes is not None and codes <= 2**31 else "int64",
            "crop": images.crop.name,
            "size": images.crop.size,
            "batch_size": batch_size,  # float32 sums, and so near ties, may depend on it
            "shard_size": shard_size,
            "source": fingerprint(images.source),
            "source_images": len(images),
        },
    )
    quarantine = Quarantine(len(images) + len(images.source.rejected), max_share)
    quarantine.add(writer.damaged)
    quarantine.add(images.source.rejected)
    device = next(tokenizer.parameters()).device
    done = min(writer.finished * shard_size, len(images))
    extent = (done, len(images), batch_size, shard_size)
    index: list[np.ndarray] = []
    names: list[str] = []
    with progress_bar(len(images), done, "image") as bar:
        loaded = ordered_batches(images, _batches(*extent), workers)
        for asked, batch in zip(_batches(*extent), loaded, strict=True):
            for damage in quarantine.add(batch.damaged):
                bar.write(damage.reason, file=sys.stderr)
            if batch.names:
                pixels = to_float(batch.images.to(device, non_blocking=True))
                index.append(tokenizer.encode(pixels).cpu().numpy())
                names += batch.names
            bar.update(len(asked))
            last = asked[-1] + 1
            if last % shard_size == 0 or last == len(images):
                writer.add(index, names, quarantine.damaged)
                index, names = [], []
    writer.finish(quarantine.damaged)
    return writer.manifest


def tokenizer_files(folder: str | Path) -> dict[str, str]:
    """sha256 of a tokenizer's files by name: what its indices depend on."""
    # Not every JSON file: `vqkern eval` leaves its figures beside them.
    files = [Path(folder) / name for name in (CONFIG_FILE, WEIGHTS_FILE)]
    return {path.name: sha256_of(path) for path in files if path.is_file()}


def _codebook_size(quantizer: nn.Module) -> int | None:
    """Codes a token, None where the quantizer does not say."""
    config = getattr(quantizer, "config", None) or {}
    size = config.get("codebook_size", getattr(quantizer, "codebook_size", None))
    return size if isinstance(size, int) else None


def _batches(first: int, end: int, batch: int, shard: int) -> Iterator[list[int]]:
    """Successive numbers in batches that do not reach over the end of a shard."""
    while first < end:
        stop = min(first + batch, (first // shard + 1) * shard, end)
        yield list(range(first, stop))
        first = stop
