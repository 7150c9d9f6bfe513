"""The risk explorer: sliders for the measured and the trained alpha, and all that moves with them, on one screen.

The browser draws from what was measured before (`explorer.js`), so that a move needs no kernel. Only fresh completions
of a policy that takes any alpha come from the kernel.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import traitlets
from IPython.display import HTML, display

from rarlhf_nb.conversations import Prompt, prompts_of
from rarlhf_nb.lab.evaluation.tail_prompts import tail_prompts_html, tail_prompts_table
from rarlhf_nb.lab.explorer.content import ExplorerContent
from rarlhf_nb.lab.explorer.plotly_widget import PlotlyWidget
from rarlhf_nb.lab.explorer.tails import Ranking
from rarlhf_nb.lab.plots.figures import cvar_curves
from rarlhf_nb.lab.plots.renderer import is_static
from rarlhf_nb.lab.texts import framed, visible

MODULE, STYLE = "explorer.js", Path(__file__).with_name("explorer.css")
Sampler = Callable[[list[Prompt], float], list[tuple[str, float]]]  # prompts, alpha -> completions with their rewards


class RiskExplorer(PlotlyWidget):
    """The explorer as a widget. `sample` gives it fresh completions of the policy that is conditioned on alpha."""

    content = traitlets.Dict().tag(sync=True)
    live = traitlets.Bool().tag(sync=True)

    def __init__(self, explored: ExplorerContent, view: dict[str, Any], sample: Sampler | None = None) -> None:
        self.explored, self.sample = explored, sample
        self._css = STYLE.read_text()
        super().__init__(MODULE, content=explored.as_json(view), live=sample is not None)
        self.on_msg(self._asked)

    def _asked(self, _widget: Any, message: dict, _buffers: list) -> None:
        """Answer {alpha} with fresh completions for the compared prompts, or with an error as text."""
        prompts = prompts_of(next(iter(self.explored.episodes.values())).iloc[self.explored.compared()])
        alpha = float(message["alpha"])
        try:
            found = [[visible(text), round(float(reward), 5)] for text, reward in self.sample(prompts, alpha)]
            self.mail.send({"alpha": alpha, "completions": found})
        except Exception as error:  # show the reader any error here
            self.mail.send({"alpha": alpha, "error": visible(str(error))})


def risk_explorer(
    episodes: dict[str, pd.DataFrame],
    *,
    alpha: float = 0.1,
    ranking: Ranking = "reward",
    trained: float | None = None,
    methods: Sequence[str] | None = None,
    anchor: str | None = None,
    stacked: bool = False,
    profile_alpha: float | None = None,
    resamples: int = 200,
    seed: int = 0,
    other_seeds: dict[int, dict[str, pd.DataFrame]] | None = None,
    alphas: dict[str, pd.DataFrame] | None = None,
    sample: Sampler | None = None,
    interactive: bool = True,
) -> RiskExplorer | None:
    """Explore the tails of several methods' rewards. The keywords alpha to stacked are the view that *share* shows.

    episodes: one episodes table per method; methods named `name@alpha` form a sweep, and `profile_alpha` adds the plain
    `name` to it. alpha: measured. trained: the trained alpha of the sweeps. methods: those that are chosen at first, by
    name. anchor: the one whose tail is read. stacked: whether the distributions lie below each other. other_seeds:
    training seed -> episodes tables of the same methods, trained with that seed; they give the price of the trained
    alpha its bands. alphas: the episodes of a policy that is conditioned on alpha, under its name, with a column alpha.
    sample(prompts, alpha): its fresh completions and their rewards.

    Returns the widget. A batch run shows the CVaR at every alpha, what the trained alpha changes, the numbers of this
    view, and completions of the hardest prompts. Raises `UserError` for an unknown ranking or method, and if methods of
    one seed were not evaluated on the same prompts.
    """
    content = ExplorerContent(episodes, profile_alpha, resamples, seed, other_seeds, alphas)
    view = content.view(alpha, ranking, trained, methods, anchor, stacked)
    if not is_static(interactive):
        return RiskExplorer(content, view, sample)
    chosen = {slot.source: content.episodes[slot.source] for slot in content.chosen(view["trained"], view["methods"])}
    cvar_curves(chosen, resamples).show()
    if content.price is not None:
        content.price.show()
    display(HTML(framed(content.numbers(view["alpha"], ranking, view["trained"]).to_html())))
    display(HTML(tail_prompts_html(tail_prompts_table(chosen))))
    return None
