"""The playbook's plots, a file each: first its info (plain data), then its figure."""

from .axis import AxisInfo, Told, axis_figure, axis_info, told_of
from .curves import CurvesInfo, curves_figure, curves_info
from .edge import EdgeInfo, edge_figure, edge_info, edge_panel
from .edge_ratio import RatioInfo, ratio_figure, ratio_info
from .law import LawInfo, law_figure, law_info
from .loss import LossInfo, is_untuned, loss_figure, loss_info
from .norms import NormsInfo, norms_figure, norms_info
from .overlay import OverlayInfo, comparable, overlay_figure, overlay_info
from .to_target import TargetInfo, target_figure, target_info
from .training import TrainingInfo, training_figure, training_info
from .trends import TrendsInfo, trends_figure, trends_info
from .versus import VersusInfo, versus_figure, versus_info

__all__ = [
    "AxisInfo",
    "CurvesInfo",
    "EdgeInfo",
    "LawInfo",
    "LossInfo",
    "NormsInfo",
    "OverlayInfo",
    "RatioInfo",
    "TargetInfo",
    "Told",
    "TrainingInfo",
    "TrendsInfo",
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
    "law_figure",
    "law_info",
    "loss_figure",
    "loss_info",
    "norms_figure",
    "norms_info",
    "overlay_figure",
    "overlay_info",
    "ratio_figure",
    "ratio_info",
    "target_figure",
    "target_info",
    "told_of",
    "training_figure",
    "training_info",
    "trends_figure",
    "trends_info",
    "versus_figure",
    "versus_info",
]
