from .api import NearestCode, nearest_code

__all__ = ["NearestCode", "nearest_code"]
