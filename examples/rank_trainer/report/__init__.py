"""What came out of a sweep: tables, plots and pages."""

from rank_trainer.report.page import text, write

__all__ = ["text", "write"]
