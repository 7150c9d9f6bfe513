"""Widgets for notebooks. Each works alone, and each shows a picture or a table instead in a batch run."""

from rarlhf_nb.lab.explorer.live_training import live_training
from rarlhf_nb.lab.explorer.schedule_designer import schedule_designer
from rarlhf_nb.lab.explorer.widget import risk_explorer

__all__ = ["live_training", "risk_explorer", "schedule_designer"]
