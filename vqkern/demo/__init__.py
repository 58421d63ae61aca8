"""A tokenizer with a large codebook from a few photographs, in minutes on a CPU."""

from vqkern.demo.command import run_demo

__all__ = ["run_demo"]
