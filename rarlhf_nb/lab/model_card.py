"""The model card of an exported policy: the words are in model_card.jinja, settings and numbers come from the run."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from transformers import AutoTokenizer

from rarlhf_nb.conversations import MESSAGES
from rarlhf_nb.lab.evaluation.cells import markdown_table
from rarlhf_nb.lab.evaluation.report import Report, cell_table, read_report
from rarlhf_nb.lab.methods import (
    CONDITIONED,
    RISK_AVERSE,
    RISK_NEUTRAL,
    MethodKey,
    method_name,
)
from rarlhf_nb.lab.profiles import Profile, training_sections
from rarlhf_nb.lab.workspace import Workspace
from rarlhf_nb.policy import PREFIX, leading_ids

TEMPLATE = Path(__file__).with_suffix(".jinja")
METRICS = ("reward", "tail_reward", "cvar_10", "perplexity", "kl")
RL_TAGS = ["reinforcement-learning", "rlhf"]
RISK_TAGS = [*RL_TAGS, "cvar", "risk-averse"]
TAGS = {
    "sft": ["sft"],
    **dict.fromkeys(("quark", *RISK_NEUTRAL), RL_TAGS),
    **dict.fromkeys((CONDITIONED, *RISK_AVERSE), RISK_TAGS),
}
TASKS = {"imdb-gen": "IMDB-Gen", "jigsaw-gen": "Jigsaw-Gen", "rtp-gen": "RealToxicityPrompts-Gen"}
PACKAGES = ("rarlhf_nb", "torch", "transformers", "trl", "peft")


def model_card(workspace: Workspace, method: str, name: str) -> ModelCard:
    """The card of a method's policy. name: under which the policy is loaded, a folder or a hub id."""
    run, profile, key = workspace.run, workspace.profile, MethodKey.parse(method)
    folder = run.path("policies", key.policy)
    prefix_ids = json.loads((folder / PREFIX).read_text())["prefix_ids"]
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    settings, report = _settings(profile, key), _report(workspace, method)
    return ModelCard.from_template(
        _metadata(profile, method, run.folder.name, report),
        template_path=str(TEMPLATE),
        method_name=method_name(method),
        method=key.name,
        alpha=key.alpha if key.name == CONDITIONED else settings.get("risk", {}).get("alpha"),
        name=json.dumps(name),
        task_name=TASKS[profile.task.name],
        profile=profile,
        leading_ids=leading_ids(tokenizer),
        chat=run.path("data/test.parquet").exists() and MESSAGES in run.read("data/test.parquet"),
        prefix_ids=prefix_ids,
        prefix=tokenizer.decode(prefix_ids),
        settings=yaml.safe_dump(settings, sort_keys=False, allow_unicode=True, width=100),
        log=run.path("training", f"{key.policy}.jsonl").exists(),
        results=report and _results(report, method),
        notes=report and _notes(report),
        evaluated=run.path("evaluation", f"{method}.parquet").exists(),
        notebook=key.method.notebook,
        run=run.name,
        seed=workspace.seed,
        versions=", ".join(f"{package} {run.manifest['versions'].get(package)}" for package in PACKAGES),
        literal=literal,
        on_hub=on_hub,
    )


def _settings(profile: Profile, key: MethodKey) -> dict[str, Any]:
    """The settings that the policy depends on, as JSON, without the names of models and files."""
    if key.name in ("sft", "prompted"):
        sections = {key.name: getattr(profile, key.name)}
    else:
        sections = training_sections(profile, key.policy)
    if key.name == CONDITIONED:
        sections["ppo"] = profile.conditioned.training(profile.ppo)
    common = {"task": {"prompt_length", "train_prompts", "test_prompts"}, "reward": {"label", "sign"}}
    settings = profile.model_dump(mode="json", include=common | {"sampling": True, "policy": {"lora"}})
    return settings | {name: section.model_dump(mode="json") for name, section in sections.items()}


def literal(text: Any) -> str:
    """A text on one line of Markdown that shows as it is: no markup, link, image or HTML of its own."""
    return re.sub(r"([\\`*_\[\]<>|!#~&$])", r"\\\1", " ".join(str(text).split()))


def is_hub_id(name: str) -> bool:
    """Whether a name has the form of an id of the hub."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def on_hub(name: str | None) -> bool:
    """Whether a profile's model or data set comes from the hub; a folder or file goes before an id, as in a run."""
    own = (None, "pocket", "smollm2", "train")
    return name not in own and is_hub_id(name) and not Path(name).expanduser().exists()


def _report(workspace: Workspace, method: str) -> Report | None:
    """The run's report, or None if it is missing or does not hold the method."""
    if not workspace.run.path("report.json").exists():
        return None
    report = read_report(workspace.run)
    return report if method in set(report.numbers["method"]) else None


def _results(report: Report, method: str) -> str:
    """The method, the SFT policy and RLHF as a Markdown table, and below them the paired difference from RLHF."""
    metrics = [metric for metric in METRICS if metric in report.names]
    numbers = report.numbers[report.numbers["metric"].isin(metrics)]
    own = numbers[(numbers["baseline"] == "") & numbers["method"].isin([method, "sft", "rlhf"])]
    difference = numbers[(numbers["baseline"] == "rlhf") & (numbers["method"] == method)]
    tables = [
        cell_table(own, "method", "metric").rename(index=method_name),
        cell_table(difference, "method", "metric").rename(index=lambda key: f"{method_name(key)} minus RLHF"),
    ]
    return markdown_table(pd.concat(tables)[metrics].rename(columns=report.names))


def _notes(report: Report) -> list[str]:
    """The report's notes, without those on metrics that the card leaves out."""
    others = tuple(f"{name} " for metric, name in report.names.items() if metric not in METRICS)
    return [note for note in report.notes if not note.startswith(others)]


def _metadata(profile: Profile, method: str, run: str, report: Report | None) -> ModelCardData:
    """The YAML at the head of the card. It claims no licence, which is the user's to give."""
    dataset, model = profile.task.dataset, profile.policy.model
    results = [
        EvalResult(
            task_type="text-generation",
            dataset_type=dataset if on_hub(dataset) else profile.task.source,
            dataset_name=TASKS[profile.task.name],
            metric_type=metric,
            metric_name=report.names[metric],
            metric_value=round(float(report.of(metric).loc[method, "value"]), 4),
        )
        for metric in METRICS
        if report and metric in report.names and not np.isnan(report.of(metric).loc[method, "value"])
    ]
    return ModelCardData(
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=TAGS.get(MethodKey.parse(method).name),
        base_model=model if on_hub(model) else None,
        datasets=[dataset] if on_hub(dataset) else None,
        model_name=f"{run}/{method}" if results else None,
        eval_results=results or None,
    )
