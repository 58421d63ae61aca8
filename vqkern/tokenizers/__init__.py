"""Image tokenizers: an encoder, a quantizer and a decoder, saved and loaded as one."""

from vqkern.tokenizers.conv import ConvConfig
from vqkern.tokenizers.formats import FORMATS
from vqkern.tokenizers.original import from_original, to_original
from vqkern.tokenizers.pretrained import from_pretrained
from vqkern.tokenizers.tiles import Tiles
from vqkern.tokenizers.tokenizer import Tokenizer, build_tokenizer
from vqkern.tokenizers.vqgan import VQGANConfig

__all__ = [
    "FORMATS",
    "ConvConfig",
    "Tiles",
    "Tokenizer",
    "VQGANConfig",
    "build_tokenizer",
    "from_original",
    "from_pretrained",
    "to_original",
]
