"""`rarlhf explore`: serves the explorer of a finished run as a local page, which needs no kernel.

Only visitors who know the token get the page, and only on this machine. The page is made once, before its address is
told; the server hands out these bytes and nothing else, reads no file and takes no data. The page loads nothing from
elsewhere, and its policy forbids the browser to.
"""

import contextlib
import html
import json
import secrets
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

from plotly.offline import get_plotlyjs

from rarlhf_nb.errors import UserError
from rarlhf_nb.lab.evaluation.tables import load_tables
from rarlhf_nb.lab.explorer.content import ExplorerContent
from rarlhf_nb.lab.explorer.plotly_widget import script
from rarlhf_nb.lab.explorer.widget import MODULE, STYLE
from rarlhf_nb.lab.profiles import Profile
from rarlhf_nb.lab.runs import Run
from rarlhf_nb.lab.texts import visible

ADDRESS = "127.0.0.1"
HINT = (
    "Move a slider, by mouse or arrow keys. Watch the filled tail, which differences keep their star, and the texts of "
    "the tail."
)
POLICY = (
    "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'unsafe-inline'; img-src data: blob:; font-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def explorer_page(run: Run, nonce: str) -> str:
    """The explorer of `run` as one HTML page, whose scripts carry the `nonce`.

    Raises `UserError` if no method was evaluated, or the methods were not evaluated on the same prompts.
    """
    tables, profile = load_tables(run), Profile(**run.manifest["settings"])
    explored = ExplorerContent(tables.episodes, profile.risk.alpha, alphas=tables.alphas)
    content = json.dumps(explored.as_json(explored.view(0.1, "reward")))
    title = html.escape(f"{visible(run.folder.name)}: risk explorer")
    return f"""<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width"><style>{STYLE.read_text()}</style></head>
<body class="rarlhf-page"><header><h1>{title}</h1>{html.escape(HINT)}</header><main></main>
<script type="application/json" id="content">{content.replace("<", chr(92) + "u003c")}</script>
<script nonce="{nonce}">{get_plotlyjs()}</script>
<script nonce="{nonce}" type="module">{script(MODULE)}openPage();</script></body></html>"""


def serve(run: Run, port: int, say: Callable[[str], None] = print) -> None:
    """Serve the `explorer_page` of `run` on this machine until Ctrl-C; `say` gets the address with its token.

    Raises the errors of `explorer_page`, and `UserError` if the port is taken.
    """
    token, nonce = secrets.token_urlsafe(24), secrets.token_urlsafe(16)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            address = urlsplit(self.path)
            given = parse_qs(address.query).get("token", [""])[0]
            if not secrets.compare_digest(given.encode(), token.encode()):
                self._answer(HTTPStatus.FORBIDDEN, b"Open the address that `rarlhf explore` printed, with its token.")
            elif address.path != "/":
                self._answer(HTTPStatus.NOT_FOUND, b"There is one page only.")
            else:
                self._answer(HTTPStatus.OK, page, "text/html; charset=utf-8")

        def _answer(self, status: HTTPStatus, body: bytes, kind: str = "text/plain; charset=utf-8") -> None:
            self.send_response(status)
            headers = {"Content-Type": kind, "Content-Length": str(len(body)), "Cache-Control": "no-store"}
            headers |= {"Content-Security-Policy": POLICY.format(nonce=nonce), "Referrer-Policy": "no-referrer"}
            for name, value in (headers | {"X-Content-Type-Options": "nosniff"}).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Visits are not logged."""

    try:
        server = ThreadingHTTPServer((ADDRESS, port), Handler)
    except OSError as error:
        raise UserError(f"port = {port} cannot be used ({error.strerror}): choose another with --port N.") from None
    with server:
        page = explorer_page(run, nonce).encode()
        say(f"http://{ADDRESS}:{port}/?token={token}\nCtrl-C ends it.")
        with contextlib.suppress(KeyboardInterrupt):
            server.serve_forever()
