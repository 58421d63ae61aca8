"""Turn a public checkpoint into a tokenizer folder, which every other command takes.

Nothing in the file is run: of pickles, tensors and plain containers alone are read.
"""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `vqkern convert`."""
    from vqkern.tokenizers.formats import FORMATS

    parser.add_argument("format", choices=FORMATS, help="whose program wrote the file")
    parser.add_argument("file", help="the checkpoint")
    parser.add_argument("--out", required=True, help="folder for the tokenizer")
    scales = "scales of a var tokenizer, where they are not the released ten"
    parser.add_argument("--patch-sizes", type=int, nargs="+", metavar="P", help=scales)


def run(args: argparse.Namespace) -> int:
    """Writes the folder and says what is in it.

    Raises:
        ValueError: the file is not one of the format, see `from_original`; the folder is not empty.
    """
    from vqkern.tokenizers import from_original

    out = Path(args.out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"--out: {args.out!r} is there and not an empty folder; choose another")
    sizes = None if args.patch_sizes is None else tuple(args.patch_sizes)
    tokenizer = from_original(args.format, args.file, patch_sizes=sizes)
    tokenizer.save_pretrained(args.out)
    config, quantizer = tokenizer.config, tokenizer.quantizer
    codes = "no quantizer" if quantizer is None else f"{quantizer.codebook_size:,} codes"
    parameters = sum(p.numel() for p in tokenizer.parameters())
    print(
        f"{args.out}: {codes}, latents of {config.latent_dim} channels at 1/{config.factor} of a "
        f"side, {parameters:,} parameters"
    )
    return 0
