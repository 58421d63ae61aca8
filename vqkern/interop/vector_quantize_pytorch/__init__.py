"""vector-quantize-pytorch's quantizers: the same calls, state dicts and results, computed here.

Replace ``from vector_quantize_pytorch import VectorQuantize`` by ``from
vqkern.interop.vector_quantize_pytorch import VectorQuantize``.
"""

from .fsq import FSQ
from .grouped_residual_vq import GroupedResidualVQ
from .lfq import LFQ
from .residual_vq import ResidualVQ
from .sim_vq import SimVQ
from .vector_quantize import VectorQuantize

__all__ = ["FSQ", "GroupedResidualVQ", "LFQ", "ResidualVQ", "SimVQ", "VectorQuantize"]
