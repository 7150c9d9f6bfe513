import os
import signal
from unittest import mock

import pytest
from hypothesis import settings

# before any library reads them: no network, no telemetry, no progress bars
os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TQDM_DISABLE": "1",
    "OMP_NUM_THREADS": "1",  # the same numbers in a test and in its subprocesses, and room for tests side by side
    "BROWSER_PATH": "none",  # pictures take seconds per notebook; a test that wants them asks for `pictures_of_figures`
}

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell starts what is in its background
    signal.signal(signal.SIGINT, signal.default_int_handler)

# `ci` draws the same examples in every run; HYPOTHESIS_PROFILE=soak draws others each time, and a hundred times as many
settings.register_profile("ci", max_examples=200, deadline=None, derandomize=True, database=None)
settings.register_profile("soak", settings.get_profile("ci"), max_examples=20_000, derandomize=False)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

# The files that take longest. They come first, so that no worker is left alone with one at the end.
LONG = ["sweep", "resumable", "notebooks", "soak", "disk", "ranks", "batch", "verify", "checkpoint", "grpo"]
LONG += ["critic_free", "properties_of_input", "stages", "finished"]


def pytest_collection_modifyitems(items):
    """Sort the files by `LONG`; the order within a file stays."""
    places = {f"test_{name}": place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: places.get(item.path.stem, len(LONG)))


@pytest.fixture
def pictures_of_figures(monkeypatch):
    """Executed notebooks have pictures if there is a browser, as they do outside the tests."""
    monkeypatch.delenv("BROWSER_PATH")


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A checkout of the project with an empty notebook, in which the test works."""
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks" / "01_data_prep.ipynb").write_text("{}")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(autouse=True)
def environment():
    """What a command sets in the environment of this process does not reach the next test."""
    with mock.patch.dict(os.environ):
        yield


@pytest.fixture(autouse=True)
def one_thread():
    """A run sets the number of threads of its process; the next test does not depend on that."""
    import torch  # after the environment is set

    torch.set_num_threads(1)
