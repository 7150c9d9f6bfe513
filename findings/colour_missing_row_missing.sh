#!/usr/bin/env bash
# Surprise: plotly.express leaves out every row whose colour column is empty, without a warning.
# Guess: such rows are a trace of their own, or drawn in a neutral colour.
# Versions: plotly 7.1.0, pandas 3.1.1
# Behaviour: rows are grouped by colour, and the group "missing" is dropped: in lines, points, bars and boxes alike.
# Seen: rows drawn of 4: line 2, scatter 2, bar 2, box 2
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

python_with plotly==7.1.0 pandas==3.1.1 <<'PYTHON'
import pandas as pd
import plotly.express as px

table = pd.DataFrame({"step": [1, 2, 3, 4], "reward": [1.0, 2.0, 3.0, 4.0], "method": ["a", None, "b", None]})
drawn = {}
for name in ("line", "scatter", "bar", "box"):
    figure = getattr(px, name)(table, x="step", y="reward", color="method")
    drawn[name] = sum(len(trace.y) for trace in figure.data)
print("rows drawn of 4: " + ", ".join(f"{name} {rows}" for name, rows in drawn.items()))
assert set(drawn.values()) == {2}, f"behaviour changed: {drawn}"
PYTHON
