"""An iteration of ours against the peer's: seconds by phase, FLOPs against the machine's rate, and peak memory.

    python -m benchmarks.iteration setup
    python -m benchmarks.iteration

The peer is `PPOTrainer` of TRL 0.11.4, the engine under the code of the paper's authors. Its libraries are older than
ours, so `setup` gives it an environment of its own in the project's cache; without it, ours alone is measured. The peer
masks the loss of dropped episodes and pays for them, so its time is the same for every alpha.

Both engines load the same random GPT-2 without dropout, and take turns with the same prompts, lengths and epochs, each
in a process with as many threads. Every completion has its full length, and the reward costs nothing. `generate` is the
sampler, `update` the PPO epochs, and `score` all the rest: rewards, reference, advantages. One iteration of each counts
the FLOPs and is not timed. Peak memory is that of a fresh process that loads the models and runs one iteration: the
whole, and what it adds to policy and reference, Adam's moments among it.

Writes OUTPUT (JSON), and beside it the table (Markdown), which it also prints; a shape that is done is not lost. Memory
is read from /proc, so this runs on Linux.
"""

import argparse
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import transformers
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from benchmarks.peer import PEER, peer_python, set_up_peer
from benchmarks.worker import REPOSITORY, Worker
from rarlhf_nb.lab.evaluation.cells import markdown_table
from rarlhf_nb.seeding import threads

PEER_MISSING = "The peer is not set up, so ours alone was measured: `python -m benchmarks.iteration setup`."
SETUP, RUN = "setup", "run"


@dataclass(frozen=True)
class Shape:
    """A GPT-2 and a batch: prompts and completions of fixed lengths in tokens."""

    layers: int
    width: int
    vocabulary: int
    batch: int
    prompt: int
    completion: int
    epochs: int = 4

    def __str__(self) -> str:
        model = f"{self.layers} × {self.width}, vocabulary {self.vocabulary:,}"
        return f"{model}, B {self.batch}, {self.prompt} + {self.completion}"


SHAPES = {
    "tiny": Shape(2, 64, 64, 10, 4, 4),
    "pocket": Shape(3, 128, 1024, 128, 24, 24),
    "medium": Shape(6, 384, 8192, 64, 32, 32),
    "gpt2": Shape(12, 768, 50257, 16, 64, 48),
}


RU = "rockafellar_uryasev"


@dataclass(frozen=True)
class Method:
    """What is measured: a module of an engine, and what each iteration is asked for."""

    name: str
    engine: str
    request: dict[str, Any]


def ours(alpha: float, estimator: str = "tail_selection", above_share: float = 1.0) -> Method:
    """Our engine with these risk settings."""
    name = f"ours, α = {alpha:g}" + (", RU" if estimator == RU else "")
    name += "" if above_share == 1 else f", share {above_share:g}"
    request = {"estimator": estimator, "alpha": alpha, "above_share": above_share}
    return Method(name, "benchmarks.our_iteration", request)


OURS = [ours(1), ours(0.4), ours(0.2), ours(0.4, RU), ours(0.2, RU), ours(0.2, RU, above_share=0.25)]
QUICK = ours(0.2)
THEIRS = Method(f"peer ({PEER})", "benchmarks.peer_iteration", {})


def write_models(shape: Shape, folder: Path) -> None:
    """Write what an engine loads: a random GPT-2 with a word for every token, prompts of such words, the shape."""
    words = ["[PAD]", "[UNK]", "[EOS]", *(f"word{i}" for i in range(shape.vocabulary - 3))]
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "eos_token": "[EOS]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    torch.manual_seed(0)
    GPT2LMHeadModel(
        GPT2Config(
            vocab_size=shape.vocabulary,
            n_positions=128,
            n_embd=shape.width,
            n_layer=shape.layers,
            n_head=shape.width // 64,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=None,
            eos_token_id=words.index("[EOS]"),
        )
    ).save_pretrained(folder)
    dice = random.Random(0)
    prompts = [" ".join(dice.choices(words[3:], k=shape.prompt)) for _ in range(shape.batch)]
    (folder / "prompts.json").write_text(json.dumps(prompts))
    (folder / "shape.json").write_text(json.dumps(asdict(shape)))


def matrix_rate(size: int = 2048) -> float:
    """FLOP/s of a large fp32 product, the best of five."""
    left, right, best = torch.rand(size, size), torch.rand(size, size), float("inf")
    for _ in range(5):
        started = time.perf_counter()
        left @ right
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best


def start(engine: str, folder: Path, count: int) -> Worker:
    """A worker of the engine, with `count` threads."""
    return Worker(peer_python() if engine == THEIRS.engine else Path(sys.executable), engine, folder, count)


def measure(shape: Shape, methods: Sequence[Method], repeats: int, count: int) -> list[dict[str, Any]]:
    """One row per method, as in the JSON: seconds of every repeat, FLOPs, the matrix rate of these minutes, bytes."""
    with tempfile.TemporaryDirectory() as name:
        folder, rates = Path(name), []
        write_models(shape, folder)
        rows = [{"shape": str(shape), "method": method.name, "seconds": []} for method in methods]
        with ExitStack() as stack, threads(count):
            names = {method.engine for method in methods}
            engines = {engine: stack.enter_context(start(engine, folder, count)) for engine in names}
            for row, method in zip(rows, methods, strict=True):
                row["flops"] = engines[method.engine].iterate(**method.request, count_flops=True)["flops"]
            for repeat in range(repeats):
                rates.append(matrix_rate())
                for row, method in zip(rows, methods, strict=True):
                    row["seconds"].append(engines[method.engine].iterate(**method.request)["seconds"])
                print(f"{shape}: repeat {repeat + 1} of {repeats}", file=sys.stderr)
        for row, method in zip(rows, methods, strict=True):
            row["matrix_rate"] = statistics.median(rates)
            row["bytes"] = memory(method, folder, count)
    return rows


def memory(method: Method, folder: Path, count: int) -> dict[str, int]:
    """Peak resident bytes of a fresh process that runs one iteration: the `whole`, and `above` the loaded models."""
    with start(method.engine, folder, count) as worker:
        loaded = worker.memory()["now"]
        worker.iterate(**method.request)
        most = worker.memory()["most"]
    return {"whole": most, "above": most - loaded}


def median(row: dict[str, Any], phase: str) -> float:
    """The median seconds of a phase; `score` is what `generate` and `update` leave of the whole."""
    return statistics.median(
        seconds["whole"] - seconds["generate"] - seconds["update"] if phase == "score" else seconds[phase]
        for seconds in row["seconds"]
    )


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: one line per shape and method, with medians, ratios to the peer's, and shares of the matrix rate."""
    peer = {row["shape"]: median(row, "whole") for row in rows if row["method"] == THEIRS.name}
    lines = []
    for row in rows:
        seconds = {phase: median(row, phase) for phase in ("generate", "score", "update", "whole")}
        share = {phase: flops / (seconds[phase] * row["matrix_rate"]) for phase, flops in row["flops"].items()}
        lines.append(
            {"shape": row["shape"], "engine": row["method"]}
            | {f"{phase}, s": f"{value:.2f}" for phase, value in seconds.items()}
            | {"ours / peer": f"{seconds['whole'] / peer[row['shape']]:.2f}" if peer else "–"}
            | {"update's share of the matrix rate": f"{share['update']:.2f}" if "update" in share else "–"}
            | {"whole's": f"{share['whole']:.2f}"}
            | {"peak memory above the models, MB": f"{row['bytes']['above'] / 1e6:.0f}"}
            | {"of the process, MB": f"{row['bytes']['whole'] / 1e6:.0f}"}
        )
    return markdown_table(pd.DataFrame(lines).set_index("shape"))


def write(output: Path, rows: list[dict[str, Any]], count: int) -> str:
    """Write the JSON and the table beside it; returns the table."""
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    result = {"threads": count, "cores": os.cpu_count(), "versions": versions, "rows": rows}
    output.write_text(json.dumps(result, indent=2) + "\n")
    missing = "" if any(row["method"] == THEIRS.name for row in rows) else f"\n{PEER_MISSING}\n"
    text = f"{table(rows)}\n{missing}"
    output.with_suffix(".md").write_text(text)
    return text


def between(lowest: int, highest: int) -> Callable[[str], int]:
    """A type of argparse: whole numbers within these bounds."""

    def number(text: str) -> int:
        if not text.isdecimal() or not lowest <= int(text) <= highest:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {lowest} to {highest}")
        return int(text)

    return number


def main(words: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", nargs="?", choices=[SETUP, RUN], default=RUN)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["pocket", "medium", "gpt2"])
    parser.add_argument("--repeats", type=between(1, 1000), default=5)
    parser.add_argument("--threads", type=between(1, os.cpu_count()), default=min(2, os.cpu_count()))
    parser.add_argument("--quick", action="store_true", help="the shape `tiny` at alpha = 0.2, once: a test in seconds")
    parser.add_argument("--output", type=Path, default=REPOSITORY / "benchmarks" / "iteration.json")
    given = parser.parse_args(words)
    if given.command == SETUP:
        print(set_up_peer())
        return
    transformers.logging.disable_progress_bar()
    given.output.parent.mkdir(parents=True, exist_ok=True)
    shapes, repeats, methods = (["tiny"], 1, [QUICK]) if given.quick else (given.shapes, given.repeats, OURS)
    if peer_python().exists():
        methods = [THEIRS, *methods]
    else:
        print(PEER_MISSING, file=sys.stderr)
    rows = []
    for name in shapes:
        rows += measure(SHAPES[name], methods, repeats, given.threads)
        text = write(given.output, rows, given.threads)
    print(text, end="")


if __name__ == "__main__":
    main()
