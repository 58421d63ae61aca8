from .api import CodeSums, code_sums

__all__ = ["CodeSums", "code_sums"]
