#!/usr/bin/env bash
# Surprise: papermill's list of a notebook's parameters shows defaults that the notebook does not have.
# Guess: the parameters cell is parsed as Python.
# Versions: papermill 2.7.0
# Behaviour: it is read line by line with a pattern. A colour ends at its "#", the rest becomes the help; a line inside a
#   string is a parameter, and overrides a real one of the same name. `--help-notebook` prints the same. Execution is right.
# Seen: colour = '"' (help: ff0000"); rate = '0.5  a line of a text"""'
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

python_with papermill==2.7.0 <<'PYTHON'
import nbformat
import papermill

source = 'colour = "#ff0000"\nrate = 0.1\nnote = """\nrate = 0.5  a line of a text\n"""'
cell = nbformat.v4.new_code_cell(source, metadata={"tags": ["parameters"]})
kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
nbformat.write(nbformat.v4.new_notebook(cells=[cell], metadata={**kernel, "language_info": {"name": "python"}}), "book.ipynb")
found = papermill.inspect_notebook("book.ipynb")
print(f"colour = {found['colour']['default']!r} (help: {found['colour']['help']}); rate = {found['rate']['default']!r}")
assert found["colour"]["default"] == '"', "behaviour changed: a default may hold a #"
assert found["rate"]["default"].startswith("0.5"), "behaviour changed: lines of a string are no parameters"
PYTHON
