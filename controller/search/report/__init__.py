"""The run's report: one self-contained HTML page that a group reads, prints and keeps."""

from controller.search.report.content import (
    Crop,
    Download,
    EntryCrops,
    Ladder,
    LoneTerrace,
    MapImage,
    PhaseTime,
    ReportContent,
    ScanBound,
    SurfaceGrid,
    TileQuality,
    TruthRow,
)
from controller.search.report.page import report_html, write_report

__all__ = [
    "Crop",
    "Download",
    "EntryCrops",
    "Ladder",
    "LoneTerrace",
    "MapImage",
    "PhaseTime",
    "ReportContent",
    "ScanBound",
    "SurfaceGrid",
    "TileQuality",
    "TruthRow",
    "report_html",
    "write_report",
]
