"""The playbook's plots, a file each: first its info (plain data), then its figure."""

from .axis import AxisInfo, Told, axis_figure, axis_info, told_of
from .curves import CurvesInfo, curves_figure, curves_info
from .edge import EdgeInfo, edge_figure, edge_info, edge_panel
from .loss import LossInfo, is_untuned, loss_figure, loss_info
from .norms import NormsInfo, norms_figure, norms_info
from .overlay import OverlayInfo, comparable, overlay_figure, overlay_info
from .training import TrainingInfo, training_figure, training_info
from .versus import VersusInfo, versus_figure, versus_info

__all__ = [
    "AxisInfo",
    "CurvesInfo",
    "EdgeInfo",
    "LossInfo",
    "NormsInfo",
    "OverlayInfo",
    "Told",
    "TrainingInfo",
    "VersusInfo",
    "axis_figure",
    "axis_info",
    "comparable",
    "curves_figure",
    "curves_info",
    "edge_figure",
    "edge_info",
    "edge_panel",
    "is_untuned",
    "loss_figure",
    "loss_info",
    "norms_figure",
    "norms_info",
    "overlay_figure",
    "overlay_info",
    "told_of",
    "training_figure",
    "training_info",
    "versus_figure",
    "versus_info",
]
