"""What runs leave behind: tables, figures as JSON and CSV, and self-contained pages."""

from vqkern.report.page import write_page
from vqkern.report.results import Curve, Row, RunRecord, Strip, format_table, write_results

__all__ = [
    "Curve",
    "Row",
    "RunRecord",
    "Strip",
    "format_table",
    "write_page",
    "write_results",
]
