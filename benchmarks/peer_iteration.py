"""The peer's iteration, that of TRL 0.11.4's `PPOTrainer`, as a worker of `benchmarks.iteration`.

It runs in the peer's environment, which has none of the project's libraries. The peer sees the same model, prompts,
lengths and epochs as ours; it generates and updates the batch at once.
"""

import json
import sys
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerFast
from trl import AutoModelForCausalLMWithValueHead, PPOConfig, PPOTrainer

from benchmarks.worker import Meter, Spent, serve


class Engine:
    """The peer's trainer and the prompts of a shape."""

    def __init__(self, folder: Path) -> None:
        self.shape = json.loads((folder / "shape.json").read_text())
        # the peer cannot read the configuration of a tokenizer that our transformers saved
        self.tokenizer = PreTrainedTokenizerFast(
            tokenizer_file=str(folder / "tokenizer.json"), pad_token="[PAD]", unk_token="[UNK]", eos_token="[EOS]"
        )
        config = PPOConfig(
            batch_size=self.shape["batch"],
            mini_batch_size=self.shape["batch"],
            ppo_epochs=self.shape["epochs"],
            learning_rate=1e-5,
            init_kl_coef=0.1,
            adap_kl_ctrl=False,
        )
        model = AutoModelForCausalLMWithValueHead.from_pretrained(str(folder))
        self.trainer = PPOTrainer(config, model, tokenizer=self.tokenizer)
        prompts = json.loads((folder / "prompts.json").read_text())
        self.queries = [torch.tensor(ids) for ids in self.tokenizer(prompts)["input_ids"]]

    def iterate(self, count_flops: bool = False) -> Spent:
        """What one iteration spends, in its phases `generate` and `update` and as a `whole`."""
        meter = Meter(count_flops)
        with meter.counting:
            stats = meter("whole", self.iteration, meter)
        meter.spent["seconds"]["update"] = stats["time/ppo/optimize_step"]
        return meter.spent

    def iteration(self, meter: Meter) -> dict:
        """Generate and step; returns the trainer's statistics."""
        responses = meter(
            "generate",
            self.trainer.generate,
            self.queries,
            batch_size=len(self.queries),
            return_prompt=False,
            do_sample=True,
            top_k=0,
            top_p=1.0,
            min_new_tokens=self.shape["completion"],
            max_new_tokens=self.shape["completion"],
            pad_token_id=self.tokenizer.pad_token_id,
            eos_token_id=self.tokenizer.eos_token_id,
        )
        scores = [torch.tensor(float(response.sum() % 7)) for response in responses]
        return self.trainer.step(self.queries, responses, scores)


if __name__ == "__main__":
    serve(Engine(Path(sys.argv[1])).iterate)
