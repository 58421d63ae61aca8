from .api import CovarianceSqrt, covariance_sqrt, gaussian_w2, prior_w2
from .moments import Moments, merge, moments, scatter_of

__all__ = [
    "CovarianceSqrt",
    "Moments",
    "covariance_sqrt",
    "gaussian_w2",
    "merge",
    "moments",
    "prior_w2",
    "scatter_of",
]
