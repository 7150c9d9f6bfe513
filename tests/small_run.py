"""Runs of seconds: the default profile made small, notebooks of one line, and the command in this process."""

from pathlib import Path

import nbformat
from typer.testing import CliRunner, Result

from rarlhf_nb.lab.cli import app, join_pairs

PARAMETERS = 'profile: str = "pocket"\nrun: str = ""\nseed: int = 1\noverrides: dict = {}'

SMALL = {
    "compute.threads": 1,  # several tests run side by side
    "task.train_prompts": 64,
    "task.test_prompts": 48,
    "sft.texts": 64,
    "prompted.validation_prompts": 16,
    "dexperts.experts.texts": 64,
    "quark.steps": 4,
    "quark.sample_interval": 2,
    "quark.exploration_prompts": 16,
    "quark.batch_size": 8,
    "evaluation.repeated_prompts": 4,
    "evaluation.repeated_samples": 3,
    "ppo.iterations": 4,
    "ppo.batch_size": 16,
    "risk.warm_start": 1,
    "critic_free.iterations": 4,
    "critic_free.batch_size": 16,
    "evaluation.held_out_texts": 16,
    "evaluation.resamples": 50,
    "evaluation.alphas": 2,
    "conditioned.iterations": 4,
}


def write_notebook(checkout: Path, name: str, code: str) -> None:
    """A notebook with the cell of parameters and one of `code`."""
    cells = [nbformat.v4.new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]}), nbformat.v4.new_code_cell(code)]
    notebook = nbformat.v4.new_notebook(cells=cells)
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, checkout / "notebooks" / f"{name}.ipynb")


def rarlhf(*words: str, status: int = 0) -> Result:
    """What the command prints; it must end with this status."""
    answer = CliRunner().invoke(app, join_pairs(list(words)))
    assert answer.exit_code == status, answer.output
    return answer
