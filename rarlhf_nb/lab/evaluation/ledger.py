"""The ledger: every number that the paper's draft published for a task, our number, and whether the two compare."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from rarlhf_nb.lab.evaluation.cells import ENDS
from rarlhf_nb.lab.evaluation.report import Report
from rarlhf_nb.lab.methods import method_name
from rarlhf_nb.lab.profiles import Profile, load_profile

PUBLISHED = Path(__file__).parent / "published.yaml"
METRICS = ("reward", "tail_reward", "perplexity")
# Two numbers compare only where these settings are the same; each with its name for readers.
IDENTITIES = {
    "policy.model": "policy",
    "reward.model": "reward model",
    "task.dataset": "data set",
    "task.prompt_length": "prompt length",
    "sampling.completion_length": "completion length",
    "task.tail_threshold": "tail threshold",
    "ppo.iterations": "iterations",
    "task.test_prompts": "test prompts",
}


def build_ledger(report: Report, profile: Profile) -> pd.DataFrame:
    """One row per published number of the profile's task.

    Columns: published_for (profile), method, metric, published, published_std, ours, ours_low, ours_high (95 %
    bootstrap interval), difference (ours - published), comparable, differs (a list of the settings in `IDENTITIES`
    that are not as published), reason (in words, why the two do not compare; empty where they do).
    """
    entries = [(entry, load_profile(entry["profile"])) for entry in yaml.safe_load(PUBLISHED.read_text())]
    rows = [
        _row(entry, method, metric, number, report, _differs(published, profile))
        for entry, published in entries
        if published.task.name == profile.task.name
        for metric in METRICS
        for method, number in entry.get(metric, {}).items()
    ]
    return pd.DataFrame(rows)


def _differs(published: Profile, profile: Profile) -> list[str]:
    stored, used = published.model_dump(), profile.model_dump()
    return [key for key in IDENTITIES if _at(stored, key) != _at(used, key)]


def _at(settings: dict[str, Any], key: str) -> Any:
    section, field = key.split(".")
    return settings[section][field]


def _row(
    entry: dict[str, Any],
    method: str,
    metric: str,
    number: float | list[float],
    report: Report,
    differs: list[str],
) -> dict[str, Any]:
    published, std = number if isinstance(number, list) else (number, np.nan)
    found = report.table.loc[method] if method in report.table.index else {}
    ours, low, high = (found.get(metric + end, np.nan) for end in ENDS)
    reason = _reason(differs, entry.get("departs"), measured=not np.isnan(ours))
    return {
        "published_for": entry["profile"],
        "method": method,
        "metric": metric,
        "published": published,
        "published_std": std,
        "ours": ours,
        "ours_low": low,
        "ours_high": high,
        "difference": ours - published,
        "comparable": not reason,
        "differs": differs,
        "reason": reason,
    }


def _reason(differs: list[str], departs: str | None, measured: bool) -> str:
    """Why our number does not compare with the published one; empty where it does."""
    reasons = [f"differs in {', '.join(IDENTITIES[key] for key in differs)}"] if differs else []
    reasons += [departs] if departs else []
    return "; ".join(reasons) or ("" if measured else "not measured in this run")


def ledger_table(ledger: pd.DataFrame) -> pd.DataFrame:
    """The ledger for reading: one row per published number, rounded; `comparable` is "yes", or "no" with the reason."""
    if ledger.empty:
        return ledger
    comparable = np.where(ledger["comparable"], "yes", "no: " + ledger["reason"])
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
