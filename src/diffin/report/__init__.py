"""The page a person looks at: one self-contained HTML file."""

from diffin.report.page import write_report

__all__ = ["write_report"]
