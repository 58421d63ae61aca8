from .api import NearestCode, nearest_code
from .certificate import Certificate, certificates

__all__ = ["Certificate", "NearestCode", "certificates", "nearest_code"]
