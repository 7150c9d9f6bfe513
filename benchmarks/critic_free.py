"""GRPO and RLOO with and without the tail, beside PPO on it, on the pocket world: what each estimator and tail buys.

Every run starts from one SFT policy and makes the same number of iterations of 128 episodes and four epochs. PPO
samples 128 prompts once, GRPO and RLOO 16 prompts eight times (TRL's number for GRPO).

    python -m benchmarks.critic_free search OUTPUT   (learning rates, on training prompts; five minutes on one core)
    python -m benchmarks.critic_free run OUTPUT      (an hour on one core; skips finished runs)
    python -m benchmarks.critic_free report OUTPUT   (the tables of the finished runs)

Settings come from the profile `pocket-imdb`, with fewer iterations. The learning rate was chosen for plain RLHF, GRPO
and RLOO, with the same search for each, before any test prompt was used; it serves all variants of each.
"""

import json
import sys
import time
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import get_args

import pandas as pd
import plotly.graph_objects as go
import torch
from datasets import Dataset
from plotly.subplots import make_subplots

from benchmarks.risk_comparison import Setting, Trained, collect, load, measure, own_kl_table, sft_folder, signed
from benchmarks.risk_comparison import train as train_ppo
from rarlhf_nb.baselines.critic_free import Estimator, Tail
from rarlhf_nb.baselines.critic_free_methods import train_critic_free
from rarlhf_nb.lab.evaluation.cells import markdown_table
from rarlhf_nb.lab.evaluation.evaluate import evaluate
from rarlhf_nb.lab.evaluation.metrics import seed_interval
from rarlhf_nb.lab.methods import method_name
from rarlhf_nb.lab.plots.theme import method_color
from rarlhf_nb.lab.profiles import Profile, load_profile
from rarlhf_nb.policy import Reference
from rarlhf_nb.settings import CriticFreeSettings

SETTINGS = {"ppo.iterations": 12, "risk.warm_start": 2}
SEEDS = [11, 12, 13, 14, 15]
SEARCH_SEED = 0
SEARCHED = [3e-4, 6e-4, 1.2e-3]
SEARCH_PROMPTS = 512  # the last training prompts, which few trainings reach
KL_COEF = 0.2
CURVE = [0.1, 0.05]  # further beta of the plain methods, at whose KL the others are compared with them
FIRST = ["rlhf", "grpo", "cvar_grpo rockafellar_uryasev batch", "rloo", "cvar_rloo rockafellar_uryasev batch"]
NO_KL = ("rloo", "cvar_gradient")
SHOWN = ["reward", "tail reward", "CVaR 10 %", "CVaR 1 %", "rare group", "KL"]
SYMBOLS = {"": "circle", "tail_selection": "square", "rockafellar_uryasev": "diamond", "cvar_gradient": "cross"}
SHOWN_KL = 10.0
LEARNING_RATES = {"ppo": 3e-4, "grpo": 3e-4, "rloo": 3e-4}


@dataclass(frozen=True)
class Variant:
    """One training without a critic; plain GRPO and RLOO have alpha = 1."""

    algorithm: str
    seed: int
    kl_coef: float = KL_COEF
    alpha: float = 1.0
    estimator: Estimator = "tail_selection"
    tail: Tail = "batch"

    @property
    def method(self) -> str:
        return self.algorithm if self.alpha == 1 else f"cvar_{self.algorithm} {self.estimator} {self.tail}"

    @property
    def name(self) -> str:
        return f"{self.method.replace(' ', '_')}_beta{self.kl_coef}_seed{self.seed}"


def profile_with(learning_rate: float) -> Profile:
    """`pocket-imdb` with the settings of this comparison."""
    return load_profile("pocket-imdb", SETTINGS | {"ppo.learning_rate": learning_rate})


def train(variant: Variant, profile: Profile, output: Path) -> Trained:
    """Trains one variant; writes <name>.jsonl."""
    policy, reward, task = load(profile, sft_folder(output, profile))
    reference = Reference(policy)
    started = time.perf_counter()
    log = train_critic_free(
        policy,
        reward,
        Dataset.from_pandas(task.train, preserve_index=False),
        CriticFreeSettings(
            iterations=profile.ppo.iterations,
            learning_rate=profile.ppo.learning_rate,
            kl_coef=variant.kl_coef,
            estimator=variant.estimator,
            tail=variant.tail,
        ),
        profile.ppo,
        profile.risk.model_copy(update={"alpha": variant.alpha}),
        profile.sampling,
        variant.algorithm,
        variant.seed,
        log_file=output / f"{variant.name}.jsonl",
    )
    return Trained(policy, reference, reward, task, log, time.perf_counter() - started)


def search(output: Path) -> None:
    """Prints, for plain RLHF, GRPO and RLOO at every learning rate, how they do on training prompts."""
    torch.set_num_threads(1)
    output.mkdir(parents=True, exist_ok=True)
    rows = {}
    for algorithm, learning_rate in product(LEARNING_RATES, SEARCHED):
        file = output / f"search_{algorithm}_{learning_rate:g}.json"
        if not file.exists():
            file.write_text(json.dumps(on_training_prompts(algorithm, profile_with(learning_rate), output)))
        rows[f"{algorithm}, learning rate {learning_rate:g}"] = json.loads(file.read_text())
    print(markdown_table(pd.DataFrame(rows).T.round(2)))


def on_training_prompts(algorithm: str, profile: Profile, output: Path) -> dict[str, float]:
    """Mean reward and KL of a plain method on training prompts, and what PPO maximises."""
    if algorithm == "ppo":
        trained = train_ppo(Setting("rlhf", SEARCH_SEED, KL_COEF), profile, output)
    else:
        trained = train(Variant(algorithm, SEARCH_SEED), profile, output)
    prompts = trained.task.train.tail(SEARCH_PROMPTS)
    how = (trained.reward, prompts, profile.sampling, profile.evaluation, SEARCH_SEED)
    means = evaluate(trained.policy, trained.reference, *how)[["reward", "kl"]].mean()
    return {"reward": means["reward"], "KL": means["kl"], "reward − 0.2 KL": means["reward"] - KL_COEF * means["kl"]}


def all_settings(profile: Profile) -> list[Setting | Variant]:
    """The runs, seed by seed, those of `FIRST` before the others; those that draw the curves over beta come last."""
    runs = [setting for seed in SEEDS for setting in (*ppo_settings(seed), *variants(seed, profile.risk.alpha))]
    main = sorted(runs, key=lambda setting: setting.method not in FIRST)
    curves = [
        setting
        for seed in SEEDS
        for beta in CURVE
        for setting in (Setting("rlhf", seed, beta), Variant("grpo", seed, beta), Variant("rloo", seed, beta))
    ]
    return main + curves


def ppo_settings(seed: int) -> list[Setting]:
    """RLHF, and PPO on the tail with both estimators."""
    return [Setting(method, seed, KL_COEF) for method in ("rlhf", "ra_rlhf", "ra_rlhf_ru")]


def variants(seed: int, alpha: float) -> list[Variant]:
    """GRPO and RLOO, each alone and with every estimator and tail.

    RLOO keeps its KL in the advantage that `cvar_gradient` replaces, so there beta is 0.
    """
    return [
        variant
        for algorithm in ("grpo", "rloo")
        for variant in (
            Variant(algorithm, seed),
            *(
                Variant(algorithm, seed, 0.0 if (algorithm, estimator) == NO_KL else KL_COEF, alpha, estimator, tail)
                for estimator, tail in product(get_args(Estimator), get_args(Tail))
            ),
        )
    ]


def run(output: Path) -> None:
    """Runs all settings that have no result yet."""
    torch.set_num_threads(1)
    output.mkdir(parents=True, exist_ok=True)
    profiles = {algorithm: profile_with(learning_rate) for algorithm, learning_rate in LEARNING_RATES.items()}
    sft_folder(output, profiles["ppo"])
    for setting in all_settings(profiles["ppo"]):
        if (output / f"{setting.name}.json").exists():
            continue
        if isinstance(setting, Variant):
            profile = profiles[setting.algorithm]
            trained = train(setting, profile, output)
        else:
            profile = profiles["ppo"]
            trained = train_ppo(setting, profile, output)
        result = measure(setting, trained, profile, output)
        print(f"{setting.name}: {result['iterations']} iterations, {result['seconds']:.0f} s", flush=True)


def baseline(method: str) -> str:
    """The method without the tail, of which a method is the risk-averse one; of GRPO and RLOO, RLHF."""
    base = method.split()[0].removeprefix("cvar_")
    return "rlhf" if method in ("grpo", "rloo") or base not in ("grpo", "rloo") else base


def label(method: str) -> str:
    """A method with its estimator and tail, for readers."""
    key, *choice = method.split()
    return ", ".join([method_name(key), *(word.replace("_", " ") for word in choice)])


def seed_table(runs: pd.DataFrame) -> pd.DataFrame:
    """Means over seeds, and below each the differences from its `baseline` with the same seed, with t-intervals."""
    rows, of = {}, {method: group.set_index("seed")[SHOWN] for method, group in runs.groupby("method", sort=False)}
    for method, values in of.items():
        rows[label(method)] = {key: f"{values[key].mean():.2f}" for key in SHOWN}
        if method != "rlhf":
            differences = values - of[baseline(method)]
            rows[f"{label(method)}: minus {label(baseline(method))}"] = {
                key: signed(seed_interval(differences[key].dropna())) for key in SHOWN
            }
    return pd.DataFrame(rows).T


def picture(runs: pd.DataFrame) -> go.Figure:
    """Mean reward and CVaR 10 % against KL: the plain methods as lines over beta, their variants as points.

    A point is the mean over seeds, coloured by algorithm, with one symbol per estimator, which is open where the tail
    is a prompt's own. Points beyond `SHOWN_KL` are left out.
    """
    means = runs.groupby(["method", "kl_coef"], sort=False)[["KL", "reward", "CVaR 10 %"]].mean().reset_index()
    means = means[(means["KL"] <= SHOWN_KL) & ~means["method"].isin(["ra_rlhf", "ra_rlhf_ru"])]
    drawn = make_subplots(cols=2, horizontal_spacing=0.12)
    for method, rows in means.groupby("method", sort=False):
        _, *choice = method.split()
        estimator, tail = choice or ("", "batch")
        base = method if not choice else baseline(method)
        symbol = SYMBOLS[estimator] + ("-open" if tail == "prompt" else "")
        for col, key in enumerate(("reward", "CVaR 10 %"), start=1):
            trace = go.Scatter(
                x=rows["KL"],
                y=rows[key],
                name=label(method),
                legendgroup=method,
                showlegend=col == 1,
                mode="markers" if choice else "lines+markers",
                line={"color": method_color(base)},
                marker={"symbol": symbol, "size": 11 if choice else 8, "line_width": 2},
            )
            drawn.add_trace(trace, row=1, col=col)
    drawn.update_xaxes(title_text="KL from the SFT policy (nats per completion)")
    drawn.update_yaxes(title_text="mean reward (logit)", col=1).update_yaxes(title_text="CVaR 10 % (logit)", col=2)
    return drawn.update_layout(template="plotly_white", legend={"orientation": "h", "y": -0.2}, margin_t=30)


def report(output: Path) -> None:
    """Prints the tables as Markdown; writes runs.csv and critic_free.png beside the runs."""
    profile = profile_with(LEARNING_RATES["ppo"])
    runs = collect(output, profile)
    order = {setting.method: place for place, setting in enumerate(all_settings(profile))}
    runs = runs.sort_values(["method", "kl_coef", "seed"], key=lambda c: c.map(order) if c.name == "method" else c)
    runs.to_csv(output / "runs.csv", index=False)
    main = runs[(runs["kl_coef"] == KL_COEF) | (runs["kl_coef"] == 0)]
    print(markdown_table(seed_table(main)), end="\n\n")
    print(markdown_table(own_kl_table(main, runs, label, baseline)), end="\n\n")
    points = runs[runs["method"].isin(["rlhf", "grpo", "rloo"])]
    points = points.groupby(["method", "kl_coef"], sort=False)[["KL", "reward", "CVaR 10 %"]].mean().round(2)
    points.index = [f"{label(method)}, beta {kl_coef:g}" for method, kl_coef in points.index]
    print(markdown_table(points))
    picture(runs).write_image(output / "critic_free.png", width=1000, height=560, scale=1.5)


if __name__ == "__main__":
    command, folder = sys.argv[1:]
    {"search": search, "run": run, "report": report}[command](Path(folder))
