"""Image tokenizers: an encoder, a quantizer and a decoder, saved and loaded as one."""

from vqkern.tokenizers.conv import ConvConfig
from vqkern.tokenizers.tokenizer import Tokenizer, build_tokenizer, from_pretrained

__all__ = ["ConvConfig", "Tokenizer", "build_tokenizer", "from_pretrained"]
