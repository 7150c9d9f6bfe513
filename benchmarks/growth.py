"""How the cost of an iteration grows with batch, completion, vocabulary and model: python -m benchmarks.growth OUTPUT.

Each axis varies one size of a small shape and keeps the others. The exponent of a phase is the slope of a straight line
through log seconds against log size: 1 is proportional, below 1 is dominated by what does not grow. Writes growth.json
and growth.png into OUTPUT, and prints one line per axis.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from benchmarks.iteration import OURS, Shape, between, measure, median
from rarlhf_nb.lab.evaluation.cells import markdown_table

START = Shape(3, 128, 1024, 32, 24, 24)
PHASES = ("generate", "score", "update", "whole")


def parameters(shape: Shape) -> int:
    """Of a GPT-2: embeddings of tokens and 128 positions, and 12 width² + 13 width per layer, 2 width at the end."""
    width = shape.width
    return (shape.vocabulary + 128) * width + shape.layers * (12 * width**2 + 13 * width) + 2 * width


AXES: dict[str, list[tuple[int, Shape]]] = {
    "batch, episodes": [(size, replace(START, batch=size)) for size in (32, 64, 128, 256, 512, 1024)],
    "completion, tokens": [(length, replace(START, completion=length)) for length in (16, 32, 64, 128 - START.prompt)],
    "vocabulary, tokens": [(size, replace(START, vocabulary=size)) for size in (1024, 4096, 16384, 50257)],
    "model, parameters": [
        (parameters(shape), shape)
        for layers, width, vocabulary in ((2, 64, 4096), (3, 128, 4096), (6, 384, 8192), (12, 768, 50257))
        for shape in [replace(START, layers=layers, width=width, vocabulary=vocabulary, batch=16)]
    ],
}


def exponent(sizes: Sequence[float], seconds: Sequence[float]) -> float:
    """The slope of the least-squares line through log seconds against log size."""
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def grow(axis: str, repeats: int, threads: int) -> dict[str, Any]:
    """The median seconds of every phase at each size of an axis, and their exponents."""
    rows = [measure(shape, OURS[:1], repeats, threads)[0] for _, shape in AXES[axis]]
    sizes = [size for size, _ in AXES[axis]]
    seconds = {phase: [median(row, phase) for row in rows] for phase in PHASES}
    exponents = {phase: exponent(sizes, seconds[phase]) for phase in PHASES}
    return {"axis": axis, "sizes": sizes, "seconds": seconds, "exponents": exponents}


def table(found: Sequence[dict[str, Any]]) -> str:
    """Markdown: one line per axis, with the exponent of each phase."""
    lines = [
        {"axis": row["axis"], "from – to": f"{row['sizes'][0]:,} – {row['sizes'][-1]:,}"}
        | {phase: f"{row['exponents'][phase]:.2f}" for phase in PHASES}
        | {"whole, s": f"{row['seconds']['whole'][0]:.2f} – {row['seconds']['whole'][-1]:.2f}"}
        for row in found
    ]
    return markdown_table(pd.DataFrame(lines).set_index("axis"))


def figure(found: Sequence[dict[str, Any]]) -> go.Figure:
    """Seconds against size on logarithmic axes, one panel per axis and one line per phase."""
    drawn = make_subplots(
        rows=2, cols=2, subplot_titles=[row["axis"] for row in found], y_title="seconds per iteration"
    )
    for i, row in enumerate(found):
        for phase, colour in zip(PHASES, ("#2a7f9e", "#8a8a8a", "#c2571a", "#222222"), strict=True):
            line = go.Scatter(
                x=row["sizes"], y=row["seconds"][phase], name=phase, legendgroup=phase, showlegend=i == 0,
                line={"color": colour}, mode="lines+markers",
            )  # fmt: skip
            drawn.add_trace(line, row=i // 2 + 1, col=i % 2 + 1)
        drawn.update_xaxes(tickvals=row["sizes"], tickformat=".3~s", row=i // 2 + 1, col=i % 2 + 1)
    drawn.update_xaxes(type="log").update_yaxes(type="log", dtick=1, tickformat="~g")
    return drawn.update_layout(template="plotly_white")


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--axes", nargs="+", choices=AXES, default=list(AXES))
    parser.add_argument("--repeats", type=between(1, 100), default=3)
    parser.add_argument("--threads", type=between(1, 64), default=2)
    given = parser.parse_args()
    given.output.mkdir(parents=True, exist_ok=True)
    found = []
    for axis in given.axes:
        found.append(grow(axis, given.repeats, given.threads))
        print(f"{axis}: done", file=sys.stderr)
    (given.output / "growth.json").write_text(json.dumps(found, indent=2) + "\n")
    figure(found).write_image(given.output / "growth.png", width=1000, height=700, scale=2)
    print(table(found))


if __name__ == "__main__":
    main()
