"""`rarlhf explore`: the errors before anything is served, and the content of the page."""

import json
import re
import socket

import pandas as pd
import pytest
from made_up import made_up_episodes

from rarlhf_nb.errors import UserError
from rarlhf_nb.lab.explorer.page import explorer_page, serve
from rarlhf_nb.lab.profiles import load_profile
from rarlhf_nb.lab.runs import Run


def a_run(root, methods=("sft", "rlhf"), name="pocket-imdb"):
    run = Run.open(name, load_profile("pocket", {}).model_dump(mode="json"), 1, root)
    for place, method in enumerate(methods):
        texts = {"prompt": [f"<b>{i}</b>" for i in range(12)], "completion": "$x$"}
        table = made_up_episodes([float(i + place) for i in range(12)], kl=1.0, **texts)
        run.write(f"evaluation/{method}.parquet", table)
    return run


def test_a_run_without_evaluated_methods_names_the_notebook(tmp_path):
    with pytest.raises(UserError, match="run notebook 02_baseline_rlhf first"):
        serve(a_run(tmp_path, methods=()), 8866)


def test_methods_of_different_prompts_are_refused_before_anything_is_served(tmp_path):
    run = a_run(tmp_path)
    table = pd.read_parquet(run.path("evaluation", "rlhf.parquet"))
    run.write("evaluation/rlhf.parquet", table.head(5))
    with pytest.raises(UserError, match="different rows"):
        serve(run, 8866)


def test_a_taken_port_is_named(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=rf"port = {port} .*in use.*: choose another with --port N\."):
            serve(a_run(tmp_path), port)


def test_the_page_holds_the_explorer_and_escapes_names_and_texts(tmp_path):
    run = a_run(tmp_path)
    page = explorer_page(Run(run.folder.rename(tmp_path / "a<b>$c")), "once")
    assert "<h1>a&lt;b&gt;$c: risk explorer</h1>" in page
    ((kind, content),) = re.findall(r'<script type="(application/json)" id="content">(.*?)</script>', page)
    assert "<" not in content  # so that no text can end the script
    found = json.loads(content)
    assert found["methods"].keys() == {"sft", "rlhf"} and found["prompts"]["0"][0] == "<b>0</b>"
    assert page.count('<script nonce="once"') == 2 and page.count("</script>") == 3
