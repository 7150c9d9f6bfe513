import re
from pathlib import Path

from transformers import AutoModelForCausalLM


def test_the_readmes_example_runs_as_it_stands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    readme = (Path(__file__).parent.parent / "README.md").read_text()
    names = {}
    for example in re.findall(r"```python\n(.*?)```", readme, flags=re.S):
        exec(example, names)
    assert len(names["log"]) == 4 and names["log"]["kept"].tolist()[-1] == 7
    assert names["grpo"].state.global_step == 2
    AutoModelForCausalLM.from_pretrained("my_policy")
