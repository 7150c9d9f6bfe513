"""The ledger: every number that the paper's draft published for a task, ours beside it, and whether they compare."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from rarlhf_nb.core.methods import method_name
from rarlhf_nb.core.profiles import Profile, load_profile
from rarlhf_nb.measuring.report import Report

PUBLISHED = Path(__file__).parent / "published.yaml"
METRICS = ("reward", "tail_reward", "perplexity")
# What has to be as published for a number to compare, and how a reader calls it.
IDENTITIES = {
    "policy.model": "policy",
    "reward.model": "reward model",
    "task.dataset": "data set",
    "task.prompt_length": "prompt length",
    "sampling.completion_length": "completion length",
    "task.tail_threshold": "tail threshold",
    "ppo.iterations": "number of iterations",
    "task.test_prompts": "number of test prompts",
}


def build_ledger(report: Report, profile: Profile) -> pd.DataFrame:
    """A row per published number of the profile's task.

    Columns: published_for (profile), method, metric, published, published_std, ours, ours_low, ours_high (95 %
    bootstrap interval), difference (ours - published), comparable, reason (why not; empty where it is).
    """
    entries = [(entry, load_profile(entry["profile"])) for entry in yaml.safe_load(PUBLISHED.read_text())]
    rows = [
        _row(entry["profile"], method, metric, number, report, _why_not(entry, published, profile))
        for entry, published in entries
        if published.task.name == profile.task.name
        for metric in METRICS
        for method, number in entry.get(metric, {}).items()
    ]
    return pd.DataFrame(rows)


def _why_not(entry: dict[str, Any], published: Profile, profile: Profile) -> str:
    """Why our number does not compare with the published one; empty where it does."""
    stored, used = published.model_dump(), profile.model_dump()
    different = [name for key, name in IDENTITIES.items() if _at(stored, key) != _at(used, key)]
    reasons = [f"another {' and another '.join(different)}"] if different else []
    return "; ".join(reasons + [entry[key] for key in ("departs",) if key in entry])


def _at(settings: dict[str, Any], key: str) -> Any:
    section, field = key.split(".")
    return settings[section][field]


def _row(
    profile: str, method: str, metric: str, number: float | list[float], report: Report, reason: str
) -> dict[str, Any]:
    published, std = number if isinstance(number, list) else (number, np.nan)
    found = report.table.loc[method] if method in report.table.index else {}
    ours, low, high = (found.get(metric + end, np.nan) for end in ("", "_low", "_high"))
    return {
        "published_for": profile,
        "method": method,
        "metric": metric,
        "published": published,
        "published_std": std,
        "ours": ours,
        "ours_low": low,
        "ours_high": high,
        "difference": ours - published,
        "comparable": not reason and not np.isnan(ours),
        "reason": reason or ("" if not np.isnan(ours) else "not measured in this run"),
    }


def ledger_table(ledger: pd.DataFrame) -> pd.DataFrame:
    """The ledger for reading: a row per published number, rounded, with "not comparable" and the reason."""
    if ledger.empty:
        return ledger
    comparable = np.where(ledger["comparable"], "yes", "not comparable: " + ledger["reason"])
    return pd.DataFrame(
        {
            "published for": ledger["published_for"],
            "method": ledger["method"].map(method_name),
            "metric": ledger["metric"],
            "published": _numbers(ledger["published"]) + _plus_minus(ledger["published_std"]),
            "ours": _numbers(ledger["ours"]) + _interval(ledger),
            "difference": _numbers(ledger["difference"]),
            "comparable": comparable,
        }
    )


def _numbers(values: pd.Series) -> pd.Series:
    return values.map(lambda value: "–" if np.isnan(value) else f"{value:.2f}")


def _plus_minus(values: pd.Series) -> pd.Series:
    return values.map(lambda value: "" if np.isnan(value) else f" ± {value:.2f}")


def _interval(ledger: pd.DataFrame) -> pd.Series:
    ends = zip(ledger["ours_low"], ledger["ours_high"], strict=True)
    texts = ["" if np.isnan(low) else f" [{low:.2f}, {high:.2f}]" for low, high in ends]
    return pd.Series(texts, index=ledger.index)
