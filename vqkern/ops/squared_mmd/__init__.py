from .api import mean_bandwidth, squared_mmd

__all__ = ["mean_bandwidth", "squared_mmd"]
