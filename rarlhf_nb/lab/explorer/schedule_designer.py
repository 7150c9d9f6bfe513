"""The schedule designer: the number of episodes that each iteration keeps, and the work that this saves."""

from typing import Literal

import pandas as pd
from IPython.display import HTML, display
from ipywidgets import BoundedIntText, FloatSlider, IntSlider, ToggleButtons, VBox

from rarlhf_nb.errors import UserError
from rarlhf_nb.lab.explorer.plotly_widget import NARROW, WIDE, Drawing, controls, page
from rarlhf_nb.lab.plots.figures import paper_schedules, schedule_figure
from rarlhf_nb.lab.plots.renderer import is_static
from rarlhf_nb.lab.texts import error_html, framed
from rarlhf_nb.risk import SoftRiskSchedule

PAPER_SCHEDULES = paper_schedules()
YOURS = "yours"
ALONG = {"by iteration": "iteration", "by share of training": "share"}
Along = Literal["iteration", "share"]


class ScheduleDesigner(VBox):
    """Controls for n, alpha, rho, M and B above the curves; settings that do not fit together give an error text."""

    def __init__(self, start: SoftRiskSchedule, along: Along = "iteration") -> None:
        self.setting = {
            "warm_start": IntSlider(start.warm_start, 0, max(100, start.warm_start), description="n", layout=WIDE),
            "alpha": FloatSlider(start.alpha, min=0.01, max=1, step=0.01, description="α", layout=WIDE),
            "rho": FloatSlider(start.rho, min=0.01, max=1, step=0.01, description="ρ", layout=WIDE),
            "iterations": BoundedIntText(start.iterations, 1, 100_000, description="M", layout=NARROW),
            "batch_size": BoundedIntText(start.batch_size, 1, 100_000, description="B", layout=NARROW),
        }
        self.along = ToggleButtons(options=ALONG, value=along, style={"button_width": "13em"})
        schedules = PAPER_SCHEDULES | {YOURS: start}
        self.curves, self.saved = Drawing(schedule_figure(schedules, along)), page(saved_html(schedules))
        super().__init__([controls(*self.setting.values(), self.along), self.curves, self.saved])
        self.add_class("rarlhf-schedule")
        for control in (*self.setting.values(), self.along):
            control.observe(self._moved, names="value")

    def _moved(self, _: dict) -> None:
        try:
            schedule = SoftRiskSchedule(**{name: control.value for name, control in self.setting.items()})
        except UserError as error:
            self.saved.value = error_html(error)
            return
        schedules = PAPER_SCHEDULES | {YOURS: schedule}
        self.curves.redraw(schedule_figure(schedules, self.along.value))
        self.saved.value = saved_html(schedules)


def saved_html(schedules: dict[str, SoftRiskSchedule]) -> str:
    """One row per schedule: its settings and the share of gradient work that it saves."""
    rows = [
        {"schedule": name, "n": s.warm_start, "α": s.alpha, "ρ": s.rho, "M": s.iterations, "B": s.batch_size}
        | {"kept at the end": s.kept(s.iterations), "gradient work saved": f"{100 * saved_share(s):.1f} %"}
        for name, s in schedules.items()
    ]
    return framed(pd.DataFrame(rows).to_html(index=False))


def saved_share(schedule: SoftRiskSchedule) -> float:
    """The share of gradient work that a schedule saves: 1 - sum_m kept(m) / (B M)."""
    return 1 - sum(schedule.kept_counts()) / (schedule.batch_size * schedule.iterations)


def schedule_designer(
    start: SoftRiskSchedule | None = None, along: Along = "iteration", interactive: bool = True
) -> ScheduleDesigner | None:
    """Design a soft-risk schedule (eqs. 8-10) beside the paper's schedules.

    start: the initial setting, by default the paper's for IMDB-Gen. Returns the widget; a batch run shows the figure
    and the table instead.
    """
    start = start or PAPER_SCHEDULES["IMDB-Gen (paper)"]
    if not is_static(interactive):
        return ScheduleDesigner(start, along)
    schedules = PAPER_SCHEDULES | {YOURS: start}
    schedule_figure(schedules, along).show()
    display(HTML(saved_html(schedules)))
    return None
