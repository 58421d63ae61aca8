"""Measuring tokenizers: quantization error, usage of the codes, and their images."""

from vqkern.evaluate.figures import Lpips, evaluate, folder_images, held_out_photographs

__all__ = ["Lpips", "evaluate", "folder_images", "held_out_photographs"]
