"""Widgets for notebooks. Each works alone, and each shows a picture or a table instead in a batch run."""

from rarlhf_nb.lab.explorer.live_training import LiveTraining, live_training
from rarlhf_nb.lab.explorer.schedule_designer import ScheduleDesigner, schedule_designer
from rarlhf_nb.lab.explorer.widget import RiskExplorer, risk_explorer

__all__ = [
    "LiveTraining",
    "RiskExplorer",
    "ScheduleDesigner",
    "live_training",
    "risk_explorer",
    "schedule_designer",
]
