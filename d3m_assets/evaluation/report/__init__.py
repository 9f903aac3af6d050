"""The report: one HTML file for people, with the verdict first. Needs no network, script or other file."""

from d3m_assets.evaluation.report.page import render_report

__all__ = ["render_report"]
