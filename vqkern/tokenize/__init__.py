"""Images of a source to token shards, and token shards to numpy."""

from vqkern.tokenize.encode import tokenize, tokenizer_files
from vqkern.tokenize.shards import MANIFEST_FILE, TokenWriter, read_manifest, read_tokens

__all__ = [
    "MANIFEST_FILE",
    "TokenWriter",
    "read_manifest",
    "read_tokens",
    "tokenize",
    "tokenizer_files",
]
