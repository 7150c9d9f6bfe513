"""The tables of docs/scale.md: what an iteration costs on paper, for three policies on 1, 8 and 64 GPUs.

python -m benchmarks.scale           # the tables
python -m benchmarks.scale --write   # puts them into docs/scale.md
"""

import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd
from transformers import DistilBertConfig, GPT2Config, GPTJConfig, LlamaConfig

from benchmarks import costs
from benchmarks.costs import Shape, Strategy, causal_lm, encoder
from benchmarks.plan import DEVICES, Plan, plan
from rarlhf_nb.lab.evaluation.cells import markdown_table
from rarlhf_nb.risk import tail_count

DOCUMENT = Path(__file__).parent.parent / "docs" / "scale.md"
IMDB = Shape(batch_size=128, prompt_length=64, completion_length=48)
LLAMA = LlamaConfig(
    vocab_size=128256, hidden_size=8192, intermediate_size=28672, num_hidden_layers=80, num_attention_heads=64,
    num_key_value_heads=8,
)  # fmt: skip
MODELS = {"GPT-2": causal_lm(GPT2Config()), "GPT-J": causal_lm(GPTJConfig()), "70B": causal_lm(LLAMA)}
HALF = replace(IMDB, weight_bytes=2)
LORA = replace(HALF, lora_rank=16)
ALPHAS = (1.0, 0.4, 0.2)
Setting = tuple[str, Shape, str, Strategy]
GPT2: Setting = ("GPT-2", IMDB, "all weights, float32", "data parallel")
GPTJ: Setting = ("GPT-J", LORA, "LoRA", "data parallel")
GPTJ_WHOLE: Setting = ("GPT-J", HALF, "all weights", "FSDP")
LARGE: Setting = ("70B", replace(LORA, gradient_checkpointing=True), "LoRA", "FSDP")
LARGE_WHOLE: Setting = ("70B", replace(HALF, gradient_checkpointing=True), "all weights", "FSDP")
SMALL_BATCH: Setting = ("GPT-J", replace(LORA, batch_size=8), "LoRA, B = 8", "data parallel")
SETTINGS = (GPT2, SMALL_BATCH, GPTJ, GPTJ_WHOLE, LARGE, LARGE_WHOLE)
ITERATIONS = {128: 194, 8: 3111}  # of IMDB-Gen: one pass over 24,895 prompts


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table, whose first column names its rows."""
    return markdown_table(pd.DataFrame(rows, columns=header).set_index(header[0]))


def number(value: float) -> str:
    """Three significant digits, without an exponent."""
    return f"{float(f'{value:.3g}'):,.10g}"


def kept(shape: Shape, alpha: float) -> Shape:
    return replace(shape, kept=tail_count(alpha, shape.batch_size))


def sizes() -> str:
    rows = [
        [name, *(f"{value:,}" for value in (m.parameters, m.matrix_weights, m.head_weights, m.matrix_sides))]
        for name, m in MODELS.items()
    ]
    return table(["policy", "parameters", "W, in the blocks", "H V, LM head", "inputs + outputs"], rows)


def flops() -> str:
    reward = IMDB.batch_size * costs.blocks_flops(encoder(DistilBertConfig()), IMDB.length, IMDB.length**2)
    rows = []
    for name, whole, training, _ in (GPT2, GPTJ, GPTJ_WHOLE, LARGE, LARGE_WHOLE):
        for alpha in ALPHAS:
            model, shape = MODELS[name], kept(whole, alpha)
            parts = [costs.generate_flops(model, shape), costs.score_flops(model, shape), reward]
            parts.append(costs.update_flops(model, shape))
            counts = [number(part / 1e12) for part in [*parts, sum(parts)]]
            rows.append([f"{name}, {training}", f"{alpha:g}", str(shape.updated), *counts])
    return table(["policy", "α", "kept", "generate", "score", "reward model", "update", "all, TFLOP"], rows)


def memories() -> str:
    zero = (*GPTJ_WHOLE[:3], "ZeRO-2")
    replicated, large = (*GPTJ_WHOLE[:3], "data parallel"), (*LARGE[:3], "data parallel")
    whole = [(GPT2, 1), (replicated, 1), (zero, 8), (GPTJ_WHOLE, 8), (GPTJ, 1), (large, 1)]
    rows = []
    for (name, shape, training, strategy), count in [*whole, (LARGE, 8), (LARGE_WHOLE, 8), (LARGE_WHOLE, 64)]:
        found = plan(MODELS[name], shape, DEVICES["A100"], count, strategy)
        held = found.memory
        parts = [held.weights, held.gradients, held.moments, held.cache, held.scoring, held.activations, held.logits]
        sizes = [number(part / 1e9) for part in [*parts, held.peak]]
        fits = "yes" if found.fits else "no"
        rows.append([f"{name}, {training}", f"{count}, {strategy}", str(found.micro_batch_size), *sizes, fits])
    parts = ["weights", "gradients", "moments", "cache", "scoring", "activations", "logits", "peak, GB"]
    return table(["policy", "GPUs", "micro-batch", *parts, "fits 80 GB"], rows)


def times(device: str, settings: Sequence[Setting] = SETTINGS, counts: Sequence[int] = (1, 8, 64)) -> str:
    rows = [
        row(setting, count, vllm, device) for setting in settings for count in counts for vllm in (False, True)
    ]  # fmt: skip
    phases = ["generate", "score", "update", "all, α 1", "α 0.4", "α 0.2", "longest, α 1 / 0.2"]
    return table(["policy", "GPUs", "sampler", *phases, "GB sent", "IMDB-Gen, α 1 / 0.2"], rows)


def row(setting: Setting, count: int, vllm: bool, device: str) -> list[str]:
    """The seconds of each phase at α = 1 with what limits it, of the whole at each α, and the price of a run."""
    name, shape, training, strategy = setting
    strategy = strategy if count > 1 else "data parallel"
    found = [plan(MODELS[name], kept(shape, alpha), DEVICES[device], count, strategy, vllm) for alpha in ALPHAS]
    label = f"{count}, {strategy}" if count > 1 else "1"
    head = [f"{name}, {training}", label, "vLLM" if vllm else "transformers"]
    whole, tail = found[0], found[-1]
    if not whole.fits:
        return [*head, f"does not fit: {number(whole.memory.peak / 1e9)} GB", *[""] * 8]
    phases = [f"{number(getattr(whole.seconds, phase))} {limit}" for phase, limit in whole.limits.items()]
    totals = [number(one.seconds.total) for one in found]
    longest = f"{whole.longest} / {tail.longest}"
    return [*head, *phases, *totals, longest, number(whole.network.total / 1e9), run(whole, tail, shape)]


def run(whole: Plan, tail: Plan, shape: Shape) -> str:
    """Hours and dollars of all iterations of IMDB-Gen."""
    iterations = ITERATIONS[shape.batch_size]
    hours = " / ".join(number(iterations * found.seconds.total / 3600) for found in (whole, tail))
    dollars = " / ".join(number(iterations * found.price) for found in (whole, tail))
    return f"{hours} h, ${dollars}"


def devices() -> str:
    rows = [
        [d.name, *(number(v / 1e12) for v in (d.flops_16, d.flops_32, d.bandwidth)), number(d.memory / 1e9)]
        + [number(d.link_bandwidth / 1e9), number(d.network_bandwidth / 1e9), f"${d.price:.2f}"]
        for d in DEVICES.values()
    ]
    rates = ["TFLOP/s, 16 bit", "TFLOP/s, 32 bit", "TB/s", "GB", "GB/s in a node", "GB/s between nodes"]
    return table(["device", *rates, "an hour"], rows)


def tables() -> dict[str, str]:
    """Every table of docs/scale.md, by the name of its place there."""
    return {
        "devices": devices(),
        "sizes": sizes(),
        "flops": flops(),
        "memory": memories(),
        "V100": times("V100", [GPT2], [1]),
        "A100": times("A100"),
        "H100": times("H100", [GPT2, GPTJ, LARGE], [8]),
    }


def main() -> None:
    made = tables()
    if sys.argv[1:] == ["--write"]:
        text = DOCUMENT.read_text()
        for name, content in made.items():
            place = rf"(<!-- {name} -->\n).*?(<!-- end -->)"
            text = re.sub(place, lambda match, content=content: f"{match[1]}{content}\n{match[2]}", text, flags=re.S)
        DOCUMENT.write_text(text)
    else:
        print("\n\n".join(f"{name}\n\n{content}" for name, content in made.items()))


if __name__ == "__main__":
    main()
