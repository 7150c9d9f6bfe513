#!/usr/bin/env bash
# Surprise: a Dropdown with the options 1 and True never has the value True, whichever of them is chosen.
# Guess: value=True selects "yes"; choosing "yes" sets the value True and calls the observers.
# Versions: ipywidgets 8.1.9
# Behaviour: options are found by ==, so True is the first option, 1. When the user chooses "yes", the label says "yes", but
#   the value stays 1, since 1 == True is no change: observers of `value` are not called. 1 and 1.0 meet in the same way.
# Seen: value=True shows "one"; "yes" chosen: label yes, value 1, observers called 0 times
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

python_with ipywidgets==8.1.9 <<'PYTHON'
from ipywidgets import Dropdown

box, seen = Dropdown(options=[("one", 1), ("yes", True), ("half", 0.5)], value=0.5), []
box.value = True
shown = box.label
box.observe(seen.append, "value")
box.label = "yes"
print(f'value=True shows "{shown}"; "yes" chosen: label {box.label}, value {box.value}, observers called {len(seen)} times')
assert shown == "one" and box.label == "yes" and box.value is not True and not seen, "behaviour changed: 1 is not True"
PYTHON
