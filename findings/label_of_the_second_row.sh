#!/usr/bin/env bash
# Surprise: `Dataset.from_list` drops a column, with all its values, if the first row happens to lack it.
# Guess: all keys are kept, with None where a row has none (as pandas does), or the rows are refused.
# Versions: datasets 5.2.0
# Behaviour: the keys of the first row are the columns. Keys that a nested row lacks ARE filled with None.
# Seen: ['text'] from rows of which two have a label; with the rows turned round ['text', 'label']
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

python_with datasets==5.2.0 <<'PYTHON'
from datasets import Dataset

rows = [{"text": "a"}, {"text": "b", "label": 1}, {"text": "c", "label": 0}]
columns = Dataset.from_list(rows).column_names
turned = Dataset.from_list(rows[::-1]).column_names
print(f"{columns} from rows of which two have a label; with the rows turned round {turned}")
nested = Dataset.from_list([{"m": {"role": "user"}}, {"m": {"role": "tool", "name": "n"}}])["m"][0]
assert columns == ["text"] and turned == ["text", "label"], "behaviour changed: the label is kept"
assert nested == {"role": "user", "name": None}, "behaviour changed: nested keys are not filled"
PYTHON
