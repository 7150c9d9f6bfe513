"""A real model on human text over five seeds, at two values of beta.

    python -m benchmarks.real_model run OUTPUT TEXTS PROFILE [SEED …]   (hours; goes on after what has been measured)
    python -m benchmarks.real_model report OUTPUT                       (the tables as Markdown)

TEXTS is a folder with imdb_reviews and jigsaw_comments, each as .train.jsonl and .test.jsonl. A profile has one reward
model and one SFT policy, of the run papermill_runs/real-PROFILE, from which every training starts. All methods make the
iterations of the profile, on one thread, with the same prompts per seed; nothing was tuned. OUTPUT/PROFILE.csv gets the
rows of a training when it has been measured. One process may work on each seed.
"""

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.study import equal_kl_table, seed_table
from rarlhf_nb.lab.evaluation.cells import markdown_line, markdown_table
from rarlhf_nb.lab.evaluation.evaluate import evaluate, held_out_log_likelihoods
from rarlhf_nb.lab.evaluation.metrics import perplexity
from rarlhf_nb.lab.evaluation.report import summary
from rarlhf_nb.lab.evaluation.tail_prompts import tail_prompts_table
from rarlhf_nb.lab.experiment import Experiment
from rarlhf_nb.lab.methods import CONDITIONED, MethodKey, method_name
from rarlhf_nb.loop import TrainingLoop
from rarlhf_nb.policy import ActorCritic

TEXTS = {"imdb-smollm2": "imdb_reviews", "jigsaw-smollm2": "jigsaw_comments"}
SETTINGS = {"compute.threads": 1, "evaluation.held_out_texts": 32}  # in float32, which every processor has
SHORTER = {"imdb-smollm2": {"task.prompt_length": 16}, "jigsaw-smollm2": {}}  # of 48: a third of the time
SEEDS = [1, 2, 3, 4, 5]
START = (0.0, 0, "sft")
KEYS = ["profile", "kl_coef", "seed", "training"]
METHODS = ["rlhf", "ra_rlhf", "ra_rlhf_ru", CONDITIONED]
TRAININGS = {0.05: METHODS, 0.1: ["rlhf", "ra_rlhf_ru"]}  # by beta: the profiles' own, and twice that for equal KL
ALPHAS = [1.0, 0.4, 0.1]  # for which the conditioned policy is measured
TEST_SEED = 0
MEASURES = ["reward", "tail reward", "CVaR 10 %", "perplexity", "KL"]
READ = 10  # prompts, the lowest-scored ones, whose completions are shown


def run(output: Path, texts: Path, profile: str, *seeds: str) -> None:
    """Train and measure what has no rows yet: all seeds at the first beta, then at the second."""
    experiment = started(profile, texts)
    output.mkdir(parents=True, exist_ok=True)
    trainings = [
        (kl_coef, int(seed), method)
        for kl_coef, methods in TRAININGS.items()
        for seed in seeds or SEEDS
        for method in methods
    ]
    for training in [START, *trainings]:
        if (profile, *training) in set(rows(output)[KEYS].itertuples(index=False, name=None)):
            continue
        begun = time.perf_counter()
        table, file = pd.DataFrame(made(experiment, *training, output)), output / f"{profile}.csv"
        table.to_csv(file, mode="a", index=False, header=not file.exists())
        print(profile, *training, f"{time.perf_counter() - begun:.0f} s", flush=True)


def started(profile: str, texts: Path) -> Experiment:
    """The run with the data, the reward model and the SFT policy of a profile; makes what is missing."""
    files = {f"task.{split}_file": str(texts / f"{TEXTS[profile]}.{split}.jsonl") for split in ("train", "test")}
    experiment = Experiment.open(profile, f"real-{profile}", 1, files | SETTINGS | SHORTER[profile])
    experiment.prepare_data()
    experiment.train_sft()
    return experiment


def made(experiment: Experiment, kl_coef: float, seed: int, method: str, output: Path) -> Iterator[dict[str, Any]]:
    """Train a method and measure it: one row for each alpha that its policy acts for; the episodes go to OUTPUT."""
    profile, begun = experiment.profile, time.perf_counter()
    if method == "sft":
        policy, iterations = experiment.start(), 0
    else:
        trainer = trainer_of(experiment, method, kl_coef, seed)
        policy, iterations = trainer.policy, len(trainer.train())
    seconds = round(time.perf_counter() - begun, 1)
    for key, fixed in acting(method, policy).items():
        episodes = measured(experiment, fixed)
        episodes.to_parquet(output / f"{profile.name}_{key}_beta{kl_coef}_seed{seed}.parquet")
        training = (profile.name, kl_coef, seed, method)
        row = dict(zip(KEYS, training, strict=True)) | {"method": key, "iterations": iterations, "seconds": seconds}
        yield row | summary(episodes, profile.task.tail_threshold) | fluency(experiment, fixed)


def trainer_of(experiment: Experiment, method: str, kl_coef: float, seed: int) -> TrainingLoop:
    """The trainer of a method with the iterations of the profile, the conditioned one too."""
    profile = experiment.profile
    changes = {"args": profile.ppo.model_copy(update={"kl_coef": kl_coef}), "seed": seed, "log_file": None}
    if method == CONDITIONED:
        equal = {"iterations": profile.ppo.iterations}
        changes["conditioned"] = profile.conditioned.model_copy(update=equal)
    return experiment.trainer(method, **changes)


def acting(method: str, policy: ActorCritic) -> dict[str, ActorCritic]:
    """The policies of a method by key: the conditioned one at each of `ALPHAS`."""
    if method == CONDITIONED:
        return {str(MethodKey(method, alpha)): policy.at(alpha) for alpha in ALPHAS}
    return {method: policy}


def measured(experiment: Experiment, policy: ActorCritic) -> pd.DataFrame:
    """The episodes of a policy on the test prompts."""
    profile, reference = experiment.profile, experiment.reference()
    how = (experiment.reward(), experiment.data("test"), profile.sampling, profile.evaluation, TEST_SEED)
    return evaluate(policy, reference, *how, profile.policy.mixed_precision)


def fluency(experiment: Experiment, policy: ActorCritic) -> dict[str, float]:
    """The perplexity of held-out human texts under a policy."""
    settings, texts = experiment.profile.evaluation, experiment.data("held_out")["text"].tolist()
    table = held_out_log_likelihoods(policy, texts, settings.held_out_length, settings.batch_size)
    numbers = table["log_likelihood"].to_numpy(), table["tokens"].to_numpy()
    return {"perplexity": float(perplexity(*numbers, np.ones(len(texts))))}


def rows(output: Path) -> pd.DataFrame:
    """All rows so far; compare those of whole seeds only, since a seed's trainings share one machine's rounding."""
    files = [file for file in (output / f"{profile}.csv" for profile in TEXTS) if file.exists()]
    return pd.concat([pd.DataFrame(columns=KEYS), *map(pd.read_csv, files)])


def report(output: Path) -> None:
    """For each profile: scores over seeds, seconds and texts to read at each beta; then what is gained at equal KL."""
    for profile, own in rows(output).groupby("profile"):
        start, own = own[own["training"] == "sft"], own[own["training"] != "sft"]
        print(f"## {profile}\n\n{markdown_table(start.set_index('method')[MEASURES].round(2))}\n")
        own = own.sort_values("training", key=lambda names: names.map(METHODS.index), kind="stable")
        trained = own.groupby(["kl_coef", "seed"])["training"].transform("nunique")
        own = own[trained == own["kl_coef"].map(lambda kl_coef: len(TRAININGS[kl_coef]))]
        for kl_coef, whole in own.groupby("kl_coef"):
            print(f"## {profile}, β {kl_coef:g}, {whole['seed'].nunique()} seeds\n")
            print(markdown_table(scores(whole)), end="\n\n")
            trainings = whole.drop_duplicates(["training", "seed"]).pivot(index="seed", columns="training")
            print(markdown_table(trainings["seconds"].round().astype(int)), end="\n\n")
            print(texts_to_read(output, profile, kl_coef))
        print(f"## {profile}, minus RLHF at equal KL\n\n{markdown_table(equal_kl_table(*by_method(own)))}\n")


def by_method(rows: pd.DataFrame) -> tuple[dict[str, pd.DataFrame], dict[str, str]]:
    """The rows of each method by its name, and for each name that of RLHF, with which it is compared."""
    groups = {method_name(method): own for method, own in rows.groupby("method", sort=False)}
    return groups, dict.fromkeys(groups, method_name("rlhf"))


def scores(whole: pd.DataFrame) -> pd.DataFrame:
    """Means over seeds and paired differences from RLHF, and those of the conditioned policy from itself at alpha 1."""
    columns = ["seed", *MEASURES]
    conditioned, _ = by_method(whole.loc[whole["training"] == CONDITIONED, ["method", *columns]])
    plain = dict.fromkeys(conditioned, method_name(str(MethodKey(CONDITIONED, 1.0))))
    inside = seed_table(conditioned, plain, MEASURES).filter(like="minus", axis=0)
    return pd.concat([seed_table(*by_method(whole[["method", *columns]]), MEASURES), inside])


def texts_to_read(output: Path, profile: str, kl_coef: float) -> str:
    """The lowest-scored prompts with the completions of each method with the first seed, as nested lists."""
    ending = f"_beta{kl_coef}_seed{SEEDS[0]}.parquet"
    files = sorted(output.glob(f"{profile}_*{ending}"))
    episodes = {file.name.removeprefix(f"{profile}_").removesuffix(ending): pd.read_parquet(file) for file in files}
    lines = []
    for (prompt, score), row in tail_prompts_table(episodes, READ).iterrows() if episodes else []:
        lines.append(f"- {markdown_line(prompt)} ({score:.2f})")
        for method in row.index.unique(0):
            completion = markdown_line(row[method, "completion"])
            lines.append(f"  - *{method_name(method)}* ({row[method, 'reward']:.2f}): {completion}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    command, *words = sys.argv[1:]
    {"run": run, "report": report}[command](Path(words[0]), *map(Path, words[1:2]), *words[2:])
