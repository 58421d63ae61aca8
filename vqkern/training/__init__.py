"""Trainers: a base tokenizer from scratch, and the two stages of VQ-Transplant."""

from vqkern.training.code_optimizer import code_optimizer
from vqkern.training.from_scratch import FromScratch, train_from_scratch
from vqkern.training.stages import OnStep, StepReport
from vqkern.training.transplant import (
    Adaptation,
    Substitution,
    adapt_decoder,
    encode_pool,
    substitute,
)

__all__ = [
    "Adaptation",
    "FromScratch",
    "OnStep",
    "StepReport",
    "Substitution",
    "adapt_decoder",
    "code_optimizer",
    "encode_pool",
    "substitute",
    "train_from_scratch",
]
