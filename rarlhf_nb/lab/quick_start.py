"""Imported first by the processes that execute notebooks: they start three seconds sooner.

`jsonschema`, which nbformat imports, builds a grammar of international addresses where the package `rfc3987_syntax` is
installed, as JupyterLab has it. No notebook holds such an address to be checked.
"""

import sys

sys.modules.setdefault("rfc3987_syntax", None)  # as if it were not installed
