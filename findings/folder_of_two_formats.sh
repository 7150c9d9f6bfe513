#!/usr/bin/env bash
# Surprise: `load_dataset(folder)` reads one kind of file of a folder of several, and says nothing of the others.
# Guess: all files are read, or the mixture is refused.
# Versions: datasets 5.2.0
# Behaviour: the commonest ending wins (of equally common ones a fixed order of formats decides); the rest is left out
#   without a warning. Three notes beside the data, and the notes ARE the data.
# Seen:
#   ['a.csv', 'b.jsonl'] -> ['from b.jsonl']
#   ['a.csv', 'b.csv', 'c.jsonl'] -> ['from a.csv', 'from b.csv']
#   ['a.csv', 'licence.txt', 'notes.txt'] -> ['from licence.txt', 'from notes.txt']
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

python_with datasets==5.2.0 <<'PYTHON'
import tempfile
from pathlib import Path

from datasets import load_dataset

FORMS = {".csv": "text\nfrom {}\n", ".jsonl": '{{"text": "from {}"}}\n', ".txt": "from {}\n"}


def read(*names):
    folder = Path(tempfile.mkdtemp(dir="."))
    for name in names:
        (folder / name).write_text(FORMS[Path(name).suffix].format(name))
    found = sorted(load_dataset(str(folder), split="train")["text"])
    print(list(names), "->", found)
    return [text.removeprefix("from ") for text in found]


one_each = read("a.csv", "b.jsonl")
assert len(one_each) == 1, "behaviour changed: both files are read"
assert read("a.csv", "b.csv", "c.jsonl") == ["a.csv", "b.csv"], "behaviour changed: the rarer format is read too"
assert read("a.csv", "licence.txt", "notes.txt") == ["licence.txt", "notes.txt"], "behaviour changed: the notes no longer win"
PYTHON
