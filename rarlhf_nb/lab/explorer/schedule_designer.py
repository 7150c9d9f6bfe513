"""The schedule designer: the number of episodes that each iteration keeps, and the work that this saves."""

import html
from typing import Literal

from IPython.display import HTML, display
from ipywidgets import BoundedIntText, FloatSlider, IntSlider, ToggleButtons, VBox

from rarlhf_nb.errors import UserError
from rarlhf_nb.lab.explorer.binding import Drawing, controls, page
from rarlhf_nb.lab.explorer.explorer_figures import saved_share, shares_figure
from rarlhf_nb.lab.explorer.text import error_html, framed, number_cell, table_html
from rarlhf_nb.lab.plots.renderer import is_static
from rarlhf_nb.lab.plots.theme import laid_out
from rarlhf_nb.lab.profiles import paper_schedules
from rarlhf_nb.risk import SoftRiskSchedule

PAPER_SCHEDULES = paper_schedules()
YOURS = "yours"
WIDE, NARROW = {"width": "22em"}, {"width": "12em"}
ALONG = {"by iteration": "iteration", "by share of training": "share"}


def saved_html(schedules: dict[str, SoftRiskSchedule]) -> str:
    """One row per schedule: its settings and the share of gradient work that it saves."""
    rows = [
        [f"<td>{html.escape(name)}</td>"]
        + [number_cell(f"{value:g}") for value in (s.warm_start, s.alpha, s.rho, s.iterations, s.batch_size)]
        + [number_cell(f"{s.kept(s.iterations)}"), number_cell(f"{100 * saved_share(s):.1f} %")]
        for name, s in schedules.items()
    ]
    head = ["schedule", "n", "α", "ρ", "M", "B", "kept at the end", "gradient work saved"]
    return framed(table_html(head, rows))


class ScheduleDesigner(VBox):
    """Controls for n, alpha, rho, M and B above the curves; settings that do not fit together give an error text."""

    def __init__(self, start: SoftRiskSchedule, along: Literal["iteration", "share"] = "iteration") -> None:
        self.warm_start = IntSlider(start.warm_start, 0, max(100, start.warm_start), description="n", layout=WIDE)
        self.alpha = FloatSlider(start.alpha, min=0.01, max=1, step=0.01, description="α", layout=WIDE)
        self.rho = FloatSlider(start.rho, min=0.01, max=1, step=0.01, description="ρ", layout=WIDE)
        self.iterations = BoundedIntText(start.iterations, 1, 100_000, description="M", layout=NARROW)
        self.batch_size = BoundedIntText(start.batch_size, 1, 100_000, description="B", layout=NARROW)
        self.along = ToggleButtons(options=ALONG, value=along, style={"button_width": "13em"})
        self.shares = Drawing(shares_figure(PAPER_SCHEDULES | {YOURS: start}, self.along.value))
        self.saved = page(saved_html(PAPER_SCHEDULES | {YOURS: start}))
        chosen = (self.warm_start, self.alpha, self.rho, self.iterations, self.batch_size)
        super().__init__([controls(*chosen, self.along), self.shares, self.saved])
        self.add_class("rarlhf-schedule")
        for control in (*chosen, self.along):
            control.observe(lambda _: self._moved(), names="value")

    def schedule(self) -> SoftRiskSchedule:
        """The schedule of the controls; raises `UserError` where they do not fit together."""
        return SoftRiskSchedule(
            self.batch_size.value, self.alpha.value, self.iterations.value, self.warm_start.value, self.rho.value
        )

    def _moved(self) -> None:
        try:
            schedules = PAPER_SCHEDULES | {YOURS: self.schedule()}
        except UserError as error:
            self.saved.value = error_html(error)
            return
        self.shares.redraw(shares_figure(schedules, self.along.value))
        self.saved.value = saved_html(schedules)


def schedule_designer(
    start: SoftRiskSchedule | None = None,
    along: Literal["iteration", "share"] = "iteration",
    interactive: bool = True,
) -> ScheduleDesigner | None:
    """Design a soft-risk schedule (eqs. 8-10) beside the paper's schedules.

    start: the initial setting, by default the paper's for IMDB-Gen. Returns the widget; a batch run shows the figure
    and the table instead.
    """
    start = start or PAPER_SCHEDULES["IMDB-Gen (paper)"]
    if not is_static(interactive):
        return ScheduleDesigner(start, along)
    schedules = PAPER_SCHEDULES | {YOURS: start}
    figure = shares_figure(schedules, along)
    laid_out(figure, "Soft-risk schedule", figure.layout.height + 60, margin_t=100).show()
    display(HTML(saved_html(schedules)))
    return None
