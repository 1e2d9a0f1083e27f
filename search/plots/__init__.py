"""The playbook's plots, a folder because each is a file of its own: info (plain data), then figure."""

from .axis import AxisInfo, axis_figure, axis_info
from .curves import CurvesInfo, curves_figure, curves_info
from .norms import NormsInfo, norms_figure, norms_info

__all__ = [
    "AxisInfo",
    "CurvesInfo",
    "NormsInfo",
    "axis_figure",
    "axis_info",
    "curves_figure",
    "curves_info",
    "norms_figure",
    "norms_info",
]
