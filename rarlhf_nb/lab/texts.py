"""Texts from data as HTML: escaped, long ones folded, and control characters made visible."""

import html
import unicodedata

MAX_SHOWN = 240  # characters of a text that are shown at once
SYMBOLS = {"\n": "↵ ", "\t": "⇥ "}
HIDDEN = ("Cc", "Cf", "Co", "Cs", "Zl", "Zp")  # control, format, private-use, surrogate, separators
STYLE = """<style>
.rarlhf table {border-collapse: collapse; margin: 0.3em 0}
.rarlhf th, .rarlhf td {padding: 0.25em 0.7em; text-align: left; vertical-align: top; line-height: 1.35;
  border-bottom: 1px solid #8888}
.rarlhf td.text {min-width: 11em; max-width: 30em; white-space: normal; overflow-wrap: anywhere}
.rarlhf td.tail {border-left: 5px solid #D55E00}
.rarlhf details summary {cursor: pointer}
.rarlhf .scroll {overflow-x: auto}
.widget-html-content:has(> .rarlhf) {min-width: 0}
.rarlhf .error {border-left: 5px solid #D55E00; padding: 0.3em 0.8em; white-space: pre-wrap; overflow-wrap: anywhere}
</style>"""


def visible(text: str) -> str:
    """`text` on one line without invisible characters: a newline becomes ↵, a tab ⇥, and U+202E ⟨U+202E⟩."""
    return "".join(map(_visible_character, str(text)))


def _visible_character(character: str) -> str:
    if character in SYMBOLS:
        return SYMBOLS[character]
    return f"⟨U+{ord(character):04X}⟩" if unicodedata.category(character) in HIDDEN else character


def text_html(text: str) -> str:
    """`text` as HTML: escaped, isolated from the surrounding text direction, and folded if it is long."""
    shown = visible(text)
    whole = f"<bdi>{html.escape(shown)}</bdi>"
    if len(shown) <= MAX_SHOWN:
        return whole
    start = html.escape(shown[:MAX_SHOWN])
    return f"<details><summary><bdi>{start}</bdi>… ({len(text)} characters)</summary>{whole}</details>"


def hover_text(text: str, most: int = 200) -> str:
    """The start of `text` for a hover label, escaped because plotly interprets HTML, in lines of 40 characters."""
    shown = visible(text)
    shown = shown if len(shown) <= most else shown[: most - 1] + "…"
    return "<br>".join(html.escape(shown[at : at + 40]) for at in range(0, len(shown), 40))


def framed(*parts: str) -> str:
    """The HTML of a widget with its style, protected from the notebook's TeX, which replaces text between two $."""
    return f'{STYLE}<div class="rarlhf tex2jax_ignore mathjax_ignore">{"".join(parts)}</div>'


def error_html(error: BaseException) -> str:
    """An error as text."""
    return framed(f'<div class="error"><b>{html.escape(type(error).__name__)}</b>: {text_html(str(error))}</div>')


def table_html(head: list[str], rows: list[list[str]]) -> str:
    """A table; the cells in `rows` are HTML, and `head` is text."""
    names = "".join(f"<th>{html.escape(name)}</th>" for name in head)
    body = "".join(f"<tr>{''.join(row)}</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{names}</tr></thead><tbody>{body}</tbody></table></div>'


def text_cell(lead: str, text: str, in_tail: bool = False) -> str:
    """A cell with a text from data, after a short lead in bold."""
    return f'<td class="text{" tail" if in_tail else ""}"><b>{html.escape(lead)}</b> {text_html(text)}</td>'
