"""Live training: choose a risk setting and watch the curves grow; pause, resume, stop."""

import threading
from collections.abc import Callable

import pandas as pd
from IPython.display import HTML, display
from ipywidgets import HTML as HTMLWidget
from ipywidgets import BoundedIntText, Button, Dropdown, FloatSlider, IntSlider, VBox

from rarlhf_nb.conversations import transcript
from rarlhf_nb.lab.explorer.plotly_widget import NARROW, WIDE, Drawing, controls, page
from rarlhf_nb.lab.plots.figures import training_curves
from rarlhf_nb.lab.plots.live_figures import NO_BATCH, batch_figure, training_figure
from rarlhf_nb.lab.plots.renderer import is_static
from rarlhf_nb.lab.texts import error_html, framed, hover_text, table_html, text_cell
from rarlhf_nb.risk import cvar
from rarlhf_nb.trainer import CVaRPPOTrainer

ESTIMATORS = {
    "tail selection": "tail_selection",
    "Rockafellar–Uryasev": "rockafellar_uryasev",
    "one policy from α to 1": "conditioned",
}
CURVES = {
    "tail_selection": "tail, α {alpha:g}",
    "rockafellar_uryasev": "RU, α {alpha:g}",
    "conditioned": "one policy, α {alpha:g} to 1",
}
SAMPLES = 3  # completions shown


class LiveTraining(VBox):
    """Trains in its own thread, one iteration at a time, so that the kernel stays free for other cells.

    make_trainer(alpha, estimator, warm_start, rho, seed) returns a trainer; `setting` has a control for each of these.
    `state` is idle, running, paused, done, stopped or failed. Only one widget per kernel trains at a time: starting
    another one stops it.
    """

    _training: "LiveTraining | None" = None

    def __init__(
        self,
        make_trainer: Callable[..., CVaRPPOTrainer],
        alpha: float,
        estimator: str,
        warm_start: int,
        rho: float,
        seed: int,
        tail_share: float,
        earlier: dict[str, pd.DataFrame],
    ) -> None:
        self.make_trainer, self.tail_share, self.earlier = make_trainer, tail_share, earlier
        self.state, self.progress = "idle", ""
        self.curves: dict[str, list[dict]] = {}  # name -> one row per iteration
        self._stop, self._go_on = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None
        self.setting = {
            "alpha": FloatSlider(alpha, min=0.01, max=1, step=0.01, description="α", layout=WIDE),
            "estimator": Dropdown(options=ESTIMATORS, value=estimator, layout={"width": "15em"}),
            "warm_start": IntSlider(warm_start, 0, max(40, warm_start), description="n", layout=WIDE),
            "rho": FloatSlider(rho, min=0.05, max=1, step=0.05, description="ρ", layout=WIDE),
            "seed": BoundedIntText(seed, 0, 10**6, description="seed", layout=NARROW),
        }
        self.start_button = Button(description="Start", button_style="primary")
        self.pause_button = Button(description="Pause", disabled=True)
        self.stop_button = Button(description="Stop", disabled=True)
        self.start_button.on_click(lambda _: self.start())
        self.pause_button.on_click(lambda _: self.resume() if self.state == "paused" else self.pause())
        self.stop_button.on_click(lambda _: self.stop())
        self.curve, self.batch = Drawing(training_figure(earlier, {}, tail_share)), Drawing(batch_figure(NO_BATCH))
        self.status, self.samples = HTMLWidget("Choose a setting and start."), page()
        buttons = controls(self.start_button, self.pause_button, self.stop_button, self.status)
        super().__init__([controls(*self.setting.values()), buttons, self.curve, self.batch, self.samples])
        self.add_class("rarlhf-training")

    # Buttons

    def start(self) -> None:
        """Train with the chosen setting; the curves of earlier settings stay."""
        if self.state in ("running", "paused"):
            return
        if LiveTraining._training not in (None, self):
            LiveTraining._training.stop()
        LiveTraining._training = self
        if self._thread is not None:
            self._thread.join()
        self._stop.clear()
        self._go_on.set()
        self.progress = "Preparing …"
        self._enter("running")
        chosen = {name: control.value for name, control in self.setting.items()}
        self._thread = threading.Thread(target=self._train, kwargs=chosen, daemon=True)
        self._thread.start()

    def pause(self) -> None:
        """Pause after the current iteration."""
        if self.state == "running":
            self._go_on.clear()
            self._enter("paused")

    def resume(self) -> None:
        """Continue after a pause."""
        if self.state == "paused":
            self._enter("running")
            self._go_on.set()

    def stop(self) -> None:
        """Stop after the current iteration; the curve so far stays."""
        if self.state in ("running", "paused"):
            self._enter("stopped")
            self._stop.set()
            self._go_on.set()

    def join(self, timeout: float | None = None) -> None:
        """Wait until the training ends."""
        if self._thread is not None:
            self._thread.join(timeout)

    # The thread

    def _train(self, **setting: float | str) -> None:
        try:
            trainer = self.make_trainer(**setting)
            curve = CURVES[setting["estimator"]] + ", n {warm_start}, ρ {rho:g}, seed {seed}"
            name = f"{len(self.curves) + 1}: {curve.format(**setting)}"
            while trainer.iteration < trainer.args.iterations and not self._stop.is_set():
                trainer.step(**trainer.next_prompts())
                self._draw(name, trainer)
                self._go_on.wait()
            if self.state == "running":
                self._enter("done")
        except Exception as error:  # show the learner any error here
            self._enter("failed")
            self.status.value = error_html(error)

    def _draw(self, name: str, trainer: CVaRPPOTrainer) -> None:
        batch = batch_table(trainer)
        mean, tail = float(batch["reward"].mean()), cvar(batch["reward"].to_numpy(), self.tail_share)
        self.curves.setdefault(name, []).append({"iteration": trainer.iteration, "mean": mean, "tail": tail})
        tables = {curve: pd.DataFrame(rows) for curve, rows in self.curves.items()}
        self.curve.redraw(training_figure(self.earlier, tables, self.tail_share))
        self.batch.redraw(batch_figure(batch))
        self.samples.value = samples_html(batch)
        of = f"Iteration {trainer.iteration} of {trainer.args.iterations}"
        self.progress = f"{of}: mean reward {mean:.2f}, CVaR {tail:.2f}"
        self._show_progress()

    def _show_progress(self) -> None:
        """The state and the progress, including the iteration during which a button was pressed."""
        self.status.value = ("" if self.state == "running" else f"{self.state.capitalize()}. ") + self.progress

    def _enter(self, state: str) -> None:
        self.state = state
        self._show_progress()
        active = state in ("running", "paused")
        self.start_button.disabled = active
        self.pause_button.disabled = self.stop_button.disabled = not active
        self.pause_button.description = "Resume" if state == "paused" else "Pause"


def live_training(
    make_trainer: Callable[..., CVaRPPOTrainer],
    *,
    alpha: float = 0.4,
    estimator: str = "tail_selection",
    warm_start: int = 5,
    rho: float = 0.95,
    seed: int = 1,
    tail_share: float = 0.2,
    earlier: dict[str, pd.DataFrame] | None = None,
    interactive: bool = True,
) -> LiveTraining | None:
    """Train in the notebook and watch; make_trainer(alpha, estimator, warm_start, rho, seed) returns a trainer.

    tail_share: the share of the drawn CVaR, the same for every setting so that curves compare. earlier: training logs
    by method, whose mean rewards are drawn in grey. Returns the widget; a batch run shows the earlier logs and trains
    nothing.
    """
    if not is_static(interactive):
        return LiveTraining(make_trainer, alpha, estimator, warm_start, rho, seed, tail_share, earlier or {})
    if earlier:
        training_curves(earlier).show()
    else:
        display(HTML(framed("<p>Open this notebook in Jupyter to train here; nothing has been trained yet.</p>")))
    return None


def batch_table(trainer: CVaRPPOTrainer) -> pd.DataFrame:
    """The last batch: columns prompt, completion, reward, kl, kept, and text, the hover label."""
    rollout = trainer.rollout
    texts = {"prompt": [*map(transcript, rollout.prompts)], "completion": rollout.completions}
    table = pd.DataFrame(texts, dtype=object)  # which may hold what no string column of pandas can
    labels = [f"{hover_text(prompt)}<br>→ {hover_text(completion)}" for prompt, completion in table.to_numpy()]
    numbers = {"reward": rollout.env_rewards.tolist(), "kl": rollout.kl.tolist()}
    return table.assign(**numbers, kept=table.index.isin(trainer.targets.tail.tolist()), text=labels)


def samples_html(batch: pd.DataFrame) -> str:
    """The episodes with the lowest rewards in the batch, with their texts."""
    rows = [
        [text_cell("", row.prompt), text_cell(f"{row.reward:+.2f}", row.completion, row.kept)]
        for row in batch.nsmallest(SAMPLES, "reward").itertuples()
    ]
    note = "<p>The lowest rewards of this batch; the bar marks kept episodes.</p>"
    return framed(note, table_html(["prompt", "completion"], rows))
