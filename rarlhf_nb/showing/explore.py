"""`rarlhf explore`: serves the explorer and the schedule designer of a finished run as a local page, by Voila.

Only visitors who know the token get the page, and only on this machine. Each visitor gets a kernel that reads the run
and writes nothing. Voila passes only widget messages (`comm_*`) to the kernel and none that executes code; the page
shows no code and no traceback, and loads nothing from elsewhere. This is not prevented: the kernel runs as the user who
started the command, so a hole in a widget library would expose that account; a visitor with the token can keep the
machine busy with many visits; and Voila's own scripts and styles, which are the same for everyone, need no token.
"""

import html
import logging
import os
import secrets
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path

import nbformat
from ipywidgets import VBox
from traitlets.config import Config

from rarlhf_nb.core.errors import UserError
from rarlhf_nb.core.profiles import Profile
from rarlhf_nb.core.runs import Run
from rarlhf_nb.measuring.tables import check_episodes, load_tables
from rarlhf_nb.showing.widgets import risk_explorer, schedule_designer
from rarlhf_nb.showing.widgets.binding import page
from rarlhf_nb.showing.widgets.text import framed, visible

ADDRESS = "127.0.0.1"
IDLE = 600  # seconds after which an abandoned kernel ends
EXPLORER = (
    "Move <i>measured α</i> with the mouse or, after a click on it, the arrow keys. Watch the filled tail with VaR "
    "(solid) and CVaR (dotted), which differences in the table keep their star, and which texts make up the tail."
)
DESIGNER = (
    "Move <i>n</i>, <i>α</i> and <i>ρ</i>. Watch how many episodes each iteration keeps, compared with the paper's "
    "schedules, and how much gradient work that saves, in the table."
)
# Voila's own page without its links to a CDN. It also extends the two seconds that anywidget 0.11 gives a figure to
# load, after which the figure ignores all changes: four figures on a slow machine take longer.
TEMPLATE = """{%- extends 'voila/templates/lab/index.html.j2' -%}
{%- block notebook_css -%}{{ super() | replace('href="https://', 'data-left-out="') }}
<script>
  const timeout = AbortSignal.timeout.bind(AbortSignal);
  AbortSignal.timeout = (milliseconds) => timeout(Math.max(milliseconds, 120_000));
</script>
{%- endblock -%}
"""
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; frame-ancestors 'none'"
)

SETTINGS = {
    "VoilaConfiguration": {
        "strip_sources": True,
        "show_tracebacks": False,
        "allow_template_override": "NO",  # by the URL; another template would load from the CDN
        "allow_theme_override": "NO",
        "file_allowlist": [],
    },
    "MappingKernelManager": {"cull_idle_timeout": IDLE},
    "KernelManager": {"transport": "ipc"},  # TCP would be open to other users of the machine
}


def dashboard(folder: str | Path) -> VBox:
    """The page of the run in `folder`, as a widget.

    Raises `UserError` where no method was evaluated, or the methods were not evaluated on the same prompts.
    """
    run = Run(Path(folder))
    tables, profile = load_tables(run), Profile(**run.manifest["settings"])
    return VBox(
        [
            page(framed(f"<h1>{html.escape(_title(run))}</h1><p>{EXPLORER}</p>")),
            risk_explorer(tables.episodes, tables.held_out, profile_alpha=profile.risk.alpha),
            page(framed(f"<h2>Soft-risk schedule</h2><p>{DESIGNER}</p>")),
            schedule_designer(profile.schedule(), along="share"),
        ]
    )


def serve(run: Run, port: int, say: Callable[[str], None] = print) -> None:
    """Serve the `dashboard` of `run` on this machine until Ctrl-C; `say` gets the address with its token.

    Raises the errors of `dashboard`, and `UserError` where Voila is missing or the port is taken.
    """
    os.environ.pop("RARLHF_STATIC", None)  # the page needs live widgets
    check_episodes(load_tables(run).episodes)  # the page would hide an error
    try:
        from voila.app import Voila
        from voila.voila_identity_provider import VoilaIdentityProvider
    except ModuleNotFoundError:
        raise UserError("rarlhf explore needs Voila: pip install 'rarlhf_nb[dashboard]'.") from None
    _check_free(port)
    token = secrets.token_urlsafe(24)
    with tempfile.TemporaryDirectory(prefix="rarlhf_explore_") as folder:
        notebook = Path(folder, "explore.ipynb")
        cell = f"from rarlhf_nb.showing.explore import dashboard\ndashboard({str(run.folder.resolve())!r})"
        nbformat.write(
            nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell)], metadata={"title": _title(run)}), notebook
        )
        Path(folder, "index.html.j2").write_text(TEMPLATE)
        server = Voila(
            notebook_path=str(notebook),
            ip=ADDRESS,
            port=port,
            port_retries=0,
            token=token,
            identity_provider_class=VoilaIdentityProvider,  # the default one has a login form that also sets passwords
            open_browser=False,
            log_level=logging.ERROR,
            config_file_paths=[],  # no voila.json may loosen these settings
            tornado_settings={"headers": {"Content-Security-Policy": POLICY}},
            config=Config(SETTINGS),
        )
        logging.getLogger("tornado").setLevel(logging.ERROR)  # otherwise every visit logs two lines about pings
        server.initialize([])
        server.template_paths = [folder, *server.template_paths]
        say(f"http://{ADDRESS}:{port}/?token={token}\nCtrl-C ends it.")
        server.start()


def _title(run: Run) -> str:
    return f"{visible(run.folder.name)}: risk explorer"


def _check_free(port: int) -> None:
    with socket.socket() as attempt:
        # as the server does, so that closed connections do not count
        attempt.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            attempt.bind((ADDRESS, port))
        except OSError as error:
            raise UserError(f"port = {port} cannot be used ({error.strerror}): choose another with --port N.") from None
