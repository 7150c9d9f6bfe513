"""CVaR for TRL's critic-free trainers: `GRPOTrainer` and `RLOOTrainer` that train on the tail.

One mixin changes what TRL's own trainers see of a batch, and everything else is TRL's: generation with or without vLLM,
PEFT, DeepSpeed, several reward functions, evaluation, logging. TRL hands its rewards over after it has gathered them
from all processes, so the tail is that of the global batch at no cost.

The three estimators, with k the episodes in the tail of N, R a reward (the weighted sum of the reward functions) and
A(R) the advantage that TRL computes from it:

- `tail_selection` (the paper's): A(R) N / k on the tail and 0 elsewhere, so that the loss is the mean over the tail.
- `rockafellar_uryasev`: A(R~) on all episodes, R~ of `risk.rockafellar_uryasev_rewards`, whose mean is the CVaR of R.
- `cvar_gradient` (eq. 7): (R - VaR) N / k on the tail and 0 elsewhere, in place of A.

At alpha = 1 the first two are TRL's trainers number for number. The third is not: VaR is then the highest reward, so
each episode is weighted by its distance from that, not from its group's mean.

The KL term is that of the episodes that are trained on. GRPO adds it to the loss, in which an episode of the tail has
the weight that it has in the whole batch. RLOO subtracts it from the reward before it computes A; the tail is that of
the rewards without it.
"""

import inspect
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
import trl
from packaging.specifiers import SpecifierSet
from trl import GRPOTrainer, RLOOTrainer

from rarlhf_nb.errors import UserError
from rarlhf_nb.policy import base_model, positions, takes
from rarlhf_nb.risk import SoftRiskSchedule, check_alpha, kept_episodes, rockafellar_uryasev_rewards, tail_count
from rarlhf_nb.trl_head import check_trl_head

Estimator = Literal["tail_selection", "rockafellar_uryasev", "cvar_gradient"]
Tail = Literal["batch", "prompt"]

SUPPORTED_TRL = SpecifierSet(">=1.13,<2")
# What is used of TRL beside its documented interface: two methods, with their parameters, and what it is about to log,
# as numbers of a step and as a table of completions.
CONTRACT = {
    "_calculate_rewards": ["inputs", "prompts", "completions", "completion_ids_list"],
    "_generate_and_score_completions": ["inputs"],
    "_metrics": None,
    "_logs": None,
}


@dataclass(frozen=True)
class CVaRConfig:
    """The tail to train on; alpha = 1 is TRL's own trainer.

    alpha, warm_start, rho: of the soft-risk schedule, which counts optimizer steps (see `SoftRiskSchedule`).
    estimator: see the module.
    tail: "batch", the lowest share of all episodes of the global batch, as in the paper, which asks for the hard
        prompts; or "prompt", the lowest share of each prompt's own samples, which asks for the worst case of a prompt.

    Raises `UserError` for a value that is none of these.
    """

    alpha: float = 0.4
    warm_start: int = 0
    rho: float = 1.0
    estimator: Estimator = "tail_selection"
    tail: Tail = "batch"

    def __post_init__(self) -> None:
        check_alpha(self.alpha)
        for name, choices in (("estimator", get_args(Estimator)), ("tail", get_args(Tail))):
            if getattr(self, name) not in choices:
                raise UserError(f"{name} = {getattr(self, name)!r}: choose one of {', '.join(choices)}.")


class CVaRMixin:
    """Makes a trainer of TRL train on the tail; it takes one more argument, `risk`."""

    def __init__(self, *args: Any, risk: CVaRConfig, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.risk = risk
        if not hasattr(self.model.config.get_text_config(), "num_experts"):
            self.aux_loss_enabled = False  # TRL 1.16 balances the load over that number, which some call otherwise
        for model in filter(None, [self.model, getattr(self, "ref_model", None)]):
            give_positions(self.accelerator.unwrap_model(model))
        check_trl_head(base_model(self.accelerator.unwrap_model(self.model)), self.temperature)
        self._check_trl()
        self._check_tail()
        self._check_settings()

    def _check_settings(self) -> None:
        """Raise `UserError` for TRL settings that do not work with the estimator."""
        aggregation = getattr(self, "multi_objective_aggregation", "sum_then_normalize")  # RLOO has no other
        if self.risk.estimator == "rockafellar_uryasev" and aggregation != "sum_then_normalize":
            raise UserError(
                f"multi_objective_aggregation = {aggregation!r} with estimator = 'rockafellar_uryasev': "
                'the CVaR is that of the summed reward. Set "sum_then_normalize", or another estimator.'
            )
        if getattr(self.args, "reward_clip_range", None) is not None:
            raise UserError(
                f"reward_clip_range = {self.args.reward_clip_range}: TRL would clip the transformed "
                "rewards. Clip them in the reward function."
            )
        if self._masks_kl and self.loss_type == "bnpo":
            raise UserError(
                f"loss_type = 'bnpo' with beta = {self.beta} and estimator = {self.risk.estimator!r}: this loss is the "
                "mean over the tokens that count, and would weigh the tail twice. Set another loss_type, or beta = 0."
            )
        if self.risk.estimator == "cvar_gradient" and isinstance(self, RLOOTrainer) and self.beta:
            raise UserError(
                f"beta = {self.beta} with RLOO and estimator = 'cvar_gradient': RLOO keeps the KL in its own "
                "advantage, which this estimator replaces. Set beta = 0, or use GRPO or another estimator."
            )

    def _check_tail(self) -> None:
        """Raise `UserError` for a group too small to have a tail, and for a schedule that does not fit the steps."""
        setting = "num_generations" if self.risk.tail == "prompt" else "generation_batch_size"
        size = getattr(self.args, setting)
        kept = tail_count(self.risk.alpha, size)
        least = 2 if self.risk.estimator == "cvar_gradient" else 1
        if self.risk.alpha < 1 and not least <= kept < size:
            reason = "which is no tail" if kept == size else "whose weight R - VaR is 0"
            raise UserError(
                f"{setting} = {size} with alpha = {self.risk.alpha} and tail = {self.risk.tail!r}: the tail holds "
                f"{kept} of {size}, {reason}. Raise {setting}, or change alpha."
            )
        if self.args.max_steps > 0:  # otherwise TRL counts the steps when it trains
            self._schedule(size, self.args.max_steps)

    @property
    def _masks_kl(self) -> bool:
        """Whether TRL adds a KL to the loss that has to leave out the episodes outside the tail."""
        selects = self.risk.estimator != "rockafellar_uryasev" and self.risk.alpha < 1
        return selects and isinstance(self, GRPOTrainer) and self.beta != 0

    def _schedule(self, episodes: int, steps: int) -> SoftRiskSchedule:
        return SoftRiskSchedule(episodes, self.risk.alpha, steps, self.risk.warm_start, self.risk.rho)

    def _groups(self, rewards: torch.Tensor) -> tuple[torch.Tensor, int]:
        """The rewards (N,) with a row for each group that has a tail of its own, and how many of a row are kept now."""
        groups = rewards.view(1, -1) if self.risk.tail == "batch" else rewards.view(-1, self.num_generations)
        return groups, self._schedule(groups.shape[1], self.state.max_steps).kept(self.state.global_step + 1)

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        per_function = super()._calculate_rewards(*args, **kwargs)
        for name, values in zip(self.reward_func_names, per_function.unbind(1), strict=True):
            if values.isinf().any():
                raise UserError(f"reward function {name}: it returned an infinite reward; return finite ones, or None.")
        if not self.model.training:
            return per_function
        missing = per_function.isnan().all(1)
        weights = self.reward_weights.to(per_function.device)
        rewards = (per_function * weights).nansum(1).masked_fill(missing, float("inf"))  # never in the tail
        self._per_function, self._rewards = per_function, rewards
        if self.risk.estimator != "rockafellar_uryasev":
            return per_function
        groups, kept = self._groups(rewards)
        transformed = groups.clone()
        if kept < groups.shape[1]:
            for new, group in zip(transformed, groups, strict=True):  # one without a reward counts in no VaR
                there = group[group.isfinite()]
                new[group.isfinite()] = rockafellar_uryasev_rewards(there, min(kept, len(there)))
        return shifted(per_function, weights, transformed.view(-1) - rewards)

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        output = super()._generate_and_score_completions(inputs)
        if not self.model.training:
            return output
        groups, kept = self._groups(self._rewards)
        tail, value_at_risk = tails(groups, kept)
        if self.risk.estimator == "rockafellar_uryasev":
            self._log_rewards_before_transformation()
        else:
            first = self.accelerator.process_index * len(inputs)
            mine = slice(first, first + len(inputs))
            table = self._logs["advantages"]  # of all processes; it keeps the last batch
            advantages = torch.tensor(list(table), dtype=groups.dtype, device=groups.device)
            if self.risk.estimator == "cvar_gradient":
                advantages = (groups - value_at_risk.unsqueeze(1)).view(-1)
            advantages = torch.where(tail, advantages, 0.0) * (groups.shape[1] / kept)
            table.extend(advantages.tolist())
            output["advantages"] = advantages[mine].to(output["advantages"].dtype)
            if self._masks_kl and kept < groups.shape[1]:
                # GRPO's loss, its KL and its entropy count the tokens whose mask is 1
                mask = output.get("tool_mask", torch.ones_like(output["completion_mask"]))
                output["tool_mask"] = mask * tail[mine].unsqueeze(1)
        numbers = {
            "alpha": kept / groups.shape[1],
            "kept": float(tail.sum()),
            "var": value_at_risk.nanmean().item(),
            "cvar": self._rewards[tail].mean().item(),
        }
        for name, number in numbers.items():
            self._metrics["train"][f"cvar/{name}"].append(number)
        return output

    def _log_rewards_before_transformation(self) -> None:
        """TRL has logged the rewards that it was given; replace them by what the reward functions said."""
        log, names = self._metrics["train"], self.reward_func_names
        for i, (name, values) in enumerate(zip(names, self._per_function.unbind(1), strict=True)):
            there, own = values[~values.isnan()], -1 - names[i + 1 :].count(name)  # functions may share a name
            log[f"rewards/{name}/mean"][own] = there.mean().item()
            log[f"rewards/{name}/std"][own] = there.std().item()
            self._logs["rewards"][name].extend(values.tolist())  # it keeps the last batch
        rewards = self._rewards[self._rewards.isfinite()]
        log["reward"][-1], log["reward_std"][-1] = rewards.mean().item(), rewards.std().item()

    def _check_trl(self) -> None:
        """Raise `UserError` if the installed TRL is not supported, or an internal that is used has moved."""
        name, base = type(self).__name__, GRPOTrainer if isinstance(self, GRPOTrainer) else RLOOTrainer
        if trl.__version__ not in SUPPORTED_TRL:
            raise UserError(f"trl {trl.__version__}: {name} supports trl{SUPPORTED_TRL}; install one of these.")
        for internal, parameters in CONTRACT.items():
            found = getattr(base, internal, None) if parameters else hasattr(self, internal)
            if not found or (parameters and list(inspect.signature(found).parameters)[1:] != parameters):
                raise UserError(
                    f"trl {trl.__version__}: {base.__name__}.{internal}, which {name} is built on, has changed. "
                    "Install the trl that the project's lock file names."
                )


class CVaRGRPOTrainer(CVaRMixin, GRPOTrainer):
    """TRL's `GRPOTrainer` on the tail: `CVaRGRPOTrainer(..., risk=CVaRConfig(alpha=0.2))`."""


class CVaRRLOOTrainer(CVaRMixin, RLOOTrainer):
    """TRL's `RLOOTrainer` on the tail: `CVaRRLOOTrainer(..., risk=CVaRConfig(alpha=0.2))`."""


def tails(groups: torch.Tensor, kept: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The tail of each row: a mask over all episodes (groups * size,), and the VaR of each row (groups,).

    An episode without a reward (inf) is in no tail; a row that holds no other has the VaR NaN.
    """
    mask = torch.zeros_like(groups, dtype=torch.bool)
    value_at_risk = groups.new_full((len(groups),), float("nan"))
    for i, group in enumerate(groups):
        there = group.isfinite().nonzero().squeeze(1)
        if len(there):
            rows = there[kept_episodes(group[there], kept)]
            mask[i, rows] = True
            value_at_risk[i] = group[rows].max()
    return mask.view(-1), value_at_risk


def shifted(per_function: torch.Tensor, weights: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """Rewards (N, functions) whose weighted sum is larger by `shift` (N,).

    A missing reward stays missing unless all others of its episode have the weight 0. An episode without a shift keeps
    its rewards to the last bit.
    """
    given = torch.where(per_function.isnan(), 0.0, weights)
    given = torch.where(given.any(1, keepdim=True), given, weights)
    part = given / given.square().sum(1, keepdim=True)
    moved = torch.where(given != 0, per_function.nan_to_num(0.0), per_function) + shift.unsqueeze(1) * part
    return torch.where(shift.unsqueeze(1).nan_to_num(0.0) == 0, per_function, moved)


def give_positions(model: torch.nn.Module) -> None:
    """Let a causal LM count its positions from each row's first token, as `generate` does.

    TRL 1.16 pads prompts on the left and reads log-probabilities without position ids. A model with learned positions,
    such as GPT-2, then reads every token of a shorter prompt at a shifted one, by up to whole nats.
    """

    def count(module: torch.nn.Module, args: tuple, given: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        mask = given.get("attention_mask")
        alone = given.get("position_ids") is None and given.get("past_key_values") is None
        if mask is not None and alone and not mask[:, 0].all():  # without padding on the left, TRL's numbers to the bit
            given["position_ids"] = positions(mask)
        return args, given

    if takes(model, "position_ids"):
        base_model(model).register_forward_pre_hook(count, with_kwargs=True)
