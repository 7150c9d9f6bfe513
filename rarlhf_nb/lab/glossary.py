"""The terms of the course, and every logged key and metric with its formula, unit, scope and time."""

import html
from collections.abc import Iterable
from dataclasses import asdict, dataclass

import pandas as pd


@dataclass(frozen=True)
class Term:
    """One quantity. formula: plain text. over: the episodes or tokens that it averages. taken: when it is measured."""

    formula: str
    unit: str
    over: str
    taken: str


@dataclass(frozen=True)
class Word:
    """A term of the course. equation: its number in the paper's draft, if it has one."""

    meaning: str
    equation: str = ""


COURSE_GLOSSARY = {
    "prompt": Word("The first tokens of a human text, which the policy continues."),
    "completion": Word("The text that the policy writes after a prompt, token by token, up to a set length."),
    "episode": Word("One prompt with one completion."),
    "policy": Word("The language model that is trained; it assigns a probability to every possible next token."),
    "logit": Word("A model's raw score before it becomes a probability; 0 means undecided between two classes."),
    "reward": Word(
        "The classifier's logit for prompt and completion together; higher is better. Beside dense rewards it is "
        "called the environment reward.",
        "3",
    ),
    "prompt score": Word("The reward model's logit for a prompt alone, before it is completed."),
    "tail prompt": Word("A hard prompt: its score is at or below the task's threshold."),
    "SFT": Word("Supervised fine-tuning: next-token prediction on wanted texts; the starting point of all RL methods."),
    "reference policy": Word("The SFT policy, frozen; KL from it costs reward, at the price β.", "3"),
    "KL": Word(
        "How far a policy has moved from the reference: the log-ratio of the two, summed over the tokens of a "
        "completion and averaged over the policy's own completions, in nats per completion.",
        "3",
    ),
    "kl_coef, β": Word(
        "The price of one nat of KL in units of reward: fixed, or adapted by a controller that steers KL to a target.",
        "3; controller 4, 12",
    ),
    "dense reward": Word(
        "A reward for each token: minus β times its log-ratio; the last token also gets the reward.", "5"
    ),
    "return": Word("The sum of an episode's dense rewards: its reward minus β times its KL."),
    "RLHF": Word("Training for the highest mean reward minus β KL; here by PPO, with every episode kept.", "3"),
    "PPO": Word(
        "Proximal policy optimisation: makes tokens with a positive advantage more likely and those with a negative "
        "one less likely, in several passes over one batch and only as far as the clip allows."
    ),
    "ratio": Word(
        "A token's probability under the current policy divided by its probability when it was sampled; PPO clips it "
        "to 1 ± 0.2."
    ),
    "critic, value": Word("A second head on the policy's network that predicts the return still to come.", "13"),
    "advantage": Word("How much the return from a token onwards exceeds the critic's prediction."),
    "GAE": Word(
        "Generalised advantage estimation: advantages from rewards and values, where λ sets how far ahead they look, "
        "from one step (λ = 0) to the end of the episode (λ = 1)."
    ),
    "tail": Word("The share α of the episodes with the lowest returns or rewards.", "6"),
    "VaR": Word("Value at risk: the boundary of the tail, that is, the highest value in it.", "6"),
    "CVaR": Word("Conditional value at risk: the mean of the tail; at α = 1, the mean of everything.", "6"),
    "α, trained": Word("The tail share that a policy was trained on; 1 is plain RLHF.", "6, 8-10"),
    "α, measured": Word("The tail share at which a policy is evaluated afterwards.", "6"),
    "soft-risk schedule": Word(
        "How many episodes each iteration keeps: all for n iterations, then ever fewer, and from ρM on the share α.",
        "8-10",
    ),
    "kept": Word("The number of episodes in the tail. Tail selection trains on these alone, RU on all.", "8-10"),
    "RA-RLHF": Word("Risk-averse RLHF, the paper's method: PPO on the kept episodes only (tail selection).", "11-13"),
    "RU": Word("Rockafellar-Uryasev: the second estimator of CVaR; it trains on every episode and changes its reward."),
    "conditioned policy": Word(
        "One policy for every α, which it reads with the prompt; trained with RU in groups, each with its own α."
    ),
    "GRPO, RLOO": Word(
        "RL without a critic: several completions of each prompt, whose advantage is the reward less that of its "
        "siblings, in GRPO divided by their spread."
    ),
    "perplexity": Word(
        "How much a text surprises a model: 1 over the geometric mean of its tokens' probabilities; lower is better."
    ),
    "Dist-n": Word(
        "The number of distinct n-grams divided by the number of words in a set of texts; repetition makes it low."
    ),
    "bootstrap interval": Word(
        "The middle 95 % of a statistic over resampled prompts; it shows how certain a number is."
    ),
    "paired difference": Word(
        "The difference of two methods on the same prompts or seeds, so that common variation cancels."
    ),
    "seeds needed": Word(
        "How many training seeds would tell two methods apart in four of five sweeps, if the paired difference and its "
        "spread seen so far were the true ones."
    ),
}

ALL = "all B episodes of the iteration"
KEPT = "the kept(m) episodes with the lowest return (or environment reward, with rank_by = env_reward)"
UPDATED_TOKENS = "completion tokens (with EOS, without padding) of the updated episodes: the kept ones or, with the "
UPDATED_TOKENS += "Rockafellar-Uryasev estimator, all B"
BEFORE = "at iteration m, under the policy that sampled, before its update"
EPOCHS = "during the update, averaged over its PPO epochs; with above_share below 1, weighted over the drawn episodes"
ONCE = "once per iteration"
TEST = "after training, on the test prompts"

TRAINING_GLOSSARY = {
    "iteration": Term("m, counted from 1", "count", "-", ONCE),
    "kept": Term("kept(m), eqs. 8-10", "episodes", "-", BEFORE),
    "env_reward_mean": Term("mean of r, the reward functions' score of prompt + completion", "logit", ALL, BEFORE),
    "env_reward_std": Term("standard deviation of r (divided by B)", "logit", ALL, BEFORE),
    "return_mean": Term("mean of R = r - kl_coef * KL of the episode", "logit", ALL, BEFORE),
    "tail_return_mean": Term("mean of R", "logit", KEPT, BEFORE),
    "tail_env_reward_mean": Term("mean of r", "logit", KEPT, BEFORE),
    "kl": Term("mean of sum_t log pi(a_t|s_t) - log pi_ref(a_t|s_t)", "nats per completion", ALL, BEFORE),
    "kl_kept": Term("like kl", "nats per completion", KEPT, BEFORE),
    "entropy": Term(
        "mean of -sum_a pi(a|s_t) log pi(a|s_t), pi as sampled (tempered, without forbidden tokens)",
        "nats per token",
        UPDATED_TOKENS,
        BEFORE,
    ),
    "completion_length": Term("mean number of completion tokens, EOS included", "tokens", ALL, BEFORE),
    "kl_coef": Term("beta of eq. 5", "logit per nat", "-", "as used at iteration m, before the controller (eq. 12)"),
    "policy_loss": Term(
        "mean of max(-A ratio, -A clip(ratio, 1 - cliprange, 1 + cliprange))",
        "none (A is whitened)",
        UPDATED_TOKENS,
        EPOCHS,
    ),
    "value_loss": Term(
        "mean of 0.5 max((V - target)^2, (V clipped around the old V - target)^2)",
        "logit^2",
        UPDATED_TOKENS,
        EPOCHS,
    ),
    "ratio_mean": Term("mean of ratio = pi(a_t|s_t) / pi_sampled(a_t|s_t)", "none", UPDATED_TOKENS, EPOCHS),
    "clip_fraction": Term("share of tokens with |ratio - 1| > cliprange", "share", UPDATED_TOKENS, EPOCHS),
    "gradient_tokens": Term(
        "prompt and completion tokens that went through a backward pass: the compute of the update",
        "tokens",
        "the updated episodes, of those above VaR the drawn ones",
        "summed over the PPO epochs of the iteration",
    ),
    "seconds": Term("wall time of the iteration", "seconds", "sampling, scoring and update", ONCE),
}

ENDS = "the episodes of the group that acts at alpha = "
CONDITIONED_GLOSSARY = {  # besides those of `TRAINING_GLOSSARY`
    "env_reward_alpha_1": Term("mean of r", "logit", f"{ENDS}1", BEFORE),
    "env_reward_alpha_min": Term("mean of r", "logit", f"{ENDS}alpha_min", BEFORE),
    "kl_alpha_1": Term("like kl", "nats per completion", f"{ENDS}1", BEFORE),
    "kl_alpha_min": Term("like kl", "nats per completion", f"{ENDS}alpha_min", BEFORE),
}

EXPLORED = "the completions of the last exploration, sampled from p_0 at first and later under the best token"
BATCH_TOKENS = "completion tokens (with EOS, without padding) of the mini-batch"
UPDATE = "at the gradient step, before it"
QUARK_GLOSSARY = {
    "step": Term("gradient steps, counted from 1", "count", "-", ONCE),
    "loss": Term("mean of -log_likelihood + kl_coef kl_per_token - entropy_coef entropy", "nats", BATCH_TOKENS, UPDATE),
    "log_likelihood": Term("mean of log p_theta(y_t|x, y_<t, r_k)", "nats per token", BATCH_TOKENS, UPDATE),
    "kl_per_token": Term(
        "mean of the exact KL(p_0 || p_theta(.|r_k)), or with kl_direction = policy_ref of KL(p_theta || p_0)",
        "nats per token",
        BATCH_TOKENS,
        UPDATE,
    ),
    "entropy": Term(
        "mean of -sum_a p_theta(a|x, y_<t, r_k) log p_theta, as sampled (tempered, without forbidden tokens)",
        "nats per token",
        BATCH_TOKENS,
        UPDATE,
    ),
    "learning_rate": Term("linear warm-up, then linear decay to 0", "none", "-", UPDATE),
    "gradient_examples": Term(
        "step * batch_size, comparable with PPO's M * B * epochs", "episodes", "-", "summed since the start"
    ),
    "gradient_tokens": Term(
        "prompt and completion tokens that went through a backward pass", "tokens", "the mini-batch", UPDATE
    ),
    "pool_size": Term("N, scored completions", "episodes", "the pool", "after the last exploration"),
    "env_reward_mean": Term("mean of r; missing scores are left out", "logit", EXPLORED, "at the exploration"),
    "completion_length": Term("mean number of tokens, EOS included", "tokens", EXPLORED, "at the exploration"),
    "seconds": Term(
        "wall time of the step", "seconds", "the update, and the exploration if the step begins with one", ONCE
    ),
}

EPISODES = "all episodes of the iteration"
UPDATED = "completion tokens of the updated episodes: all, or in GRPO with tail_selection or cvar_gradient the tail"
CRITIC_FREE_GLOSSARY = {
    "iteration": Term("counted from 1", "count", "-", ONCE),
    "kept": Term("the number of episodes in the tail, of the batch or of all prompts", "episodes", "-", BEFORE),
    "env_reward_mean": Term("mean of r", "logit", EPISODES, BEFORE),
    "env_reward_std": Term("standard deviation of r (divided by B)", "logit", EPISODES, BEFORE),
    "tail_env_reward_mean": Term("mean of r", "logit", "the episodes of the tail, by reward", BEFORE),
    "kl": Term("as in the training log, but over the whole vocabulary", "nats per completion", EPISODES, BEFORE),
    "entropy": Term(
        "mean of -sum_a pi(a|s_t) log pi(a|s_t) over the whole vocabulary", "nats per token", UPDATED, EPOCHS
    ),
    "completion_length": Term("mean number of completion tokens, EOS included", "tokens", EPISODES, BEFORE),
    "kl_coef": Term(
        "beta: of GRPO's loss per token, in units of the normalised reward; of RLOO's reward per episode",
        "none; logit per nat",
        "-",
        ONCE,
    ),
    "loss": Term("TRL's loss, GRPO's with its KL", "none", UPDATED, EPOCHS),
    "clip_fraction": Term("share beyond the clip: in GRPO of tokens, in RLOO of episodes", "share", UPDATED, EPOCHS),
    "gradient_tokens": Term(
        "prompt and completion tokens that went through a backward pass, inside and outside the tail",
        "tokens",
        EPISODES,
        "summed over the epochs of the iteration",
    ),
    "seconds": Term("wall time of the iteration", "seconds", "sampling, scoring and update", ONCE),
}

REPORT_GLOSSARY = {
    "reward": Term("mean of r", "logit", "all test episodes", TEST),
    "tail_reward": Term("mean of r", "logit", "episodes of prompts with prompt_score <= tail_threshold", TEST),
    "tail_reward_10": Term(
        "mean of r, where the boundary episode counts with the remaining fraction",
        "logit",
        "episodes of the 10 % of prompts with the lowest prompt_score",
        TEST,
    ),
    "cvar_<p>": Term(
        "CVaR_alpha(r), alpha = p %: mean of the lowest alpha share of r, with a fractional boundary (eq. 6)",
        "logit",
        "the p % of test episodes with the lowest r",
        TEST,
    ),
    "reward[<group>]": Term("mean of r", "logit", "episodes of one of the rarer groups of prompts", TEST),
    "kl": Term("as in training, from the SFT policy", "nats per completion", "all test episodes", TEST),
    "normalised_reward": Term(
        "the classifier's probability: softmax or sigmoid of its logits; 1 - p if the sign is -1",
        "share",
        "all test episodes",
        TEST,
    ),
    "completion_length": Term("mean number of completion tokens, EOS included", "tokens", "all test episodes", TEST),
    "completion_perplexity": Term(
        "mean over completions of exp(-log p_base(completion | prompt) / tokens), without values of 10,000 and more",
        "none",
        "all test episodes, under the base model",
        TEST,
    ),
    "dist_<n>": Term(
        "different n-grams / words; no interval, since repeating a text lowers it",
        "share",
        "the pooled completions of the first sample",
        TEST,
    ),
    "prompt_dist_<n>": Term(
        "mean over prompts of different n-grams / words among a prompt's completions",
        "share",
        "the first evaluation.repeated_prompts prompts with evaluation.repeated_samples completions each",
        TEST,
    ),
    "expected_maximum_toxicity": Term(
        "mean over prompts of the largest 1 - normalised_reward among a prompt's completions",
        "share",
        "like prompt_dist_<n>; only where the reward is civility",
        TEST,
    ),
    "toxicity_probability": Term(
        "share of prompts with at least one completion whose 1 - normalised_reward is >= 0.5",
        "share",
        "like prompt_dist_<n>; only where the reward is civility",
        TEST,
    ),
    "perplexity": Term(
        "mean over texts of exp(-log-likelihood / tokens)",
        "none",
        "scored tokens of held-out positive human texts",
        "after training, by teacher forcing",
    ),
    "<metric>_low, <metric>_high": Term(
        "2.5 % and 97.5 % quantiles of the metric over bootstrap resamples",
        "as the metric",
        "prompts with all their samples (perplexity: texts), drawn with replacement",
        "after training",
    ),
}

SWEEP_GLOSSARY = {
    "<metric>": Term("mean of the runs' metric", "as the metric", "training seeds that measured it", "after the sweep"),
    "<metric>_low, <metric>_high": Term(
        "mean -+ t_{97.5 %, S - 1} s / sqrt(S), s the standard deviation over S seeds",
        "as the metric",
        "training seeds; in differences, those that both methods have",
        "after the sweep",
    ),
    "seeds_needed": Term(
        "smallest n >= 2 with P(|T| > t_{97.5 %, n - 1}) >= 0.8; T has a noncentral t distribution with n - 1 degrees "
        "of freedom and noncentrality sqrt(n) |mean(d)| / s(d), where d is the difference of a seed",
        "seeds",
        "paired differences of CVaR 10 %, or of the tail metric in its place",
        "after the sweep",
    ),
}


def glossary_table() -> pd.DataFrame:
    """All logged keys and metrics as one table: columns where, key, formula, unit, over, taken."""
    return pd.DataFrame(
        [
            {"where": where, "key": key} | asdict(term)
            for where, terms in {
                "training log": TRAINING_GLOSSARY,
                "conditioned log": CONDITIONED_GLOSSARY,
                "Quark's log": QUARK_GLOSSARY,
                "log of GRPO and RLOO": CRITIC_FREE_GLOSSARY,
                "report": REPORT_GLOSSARY,
                "sweep report": SWEEP_GLOSSARY,
            }.items()
            for key, term in terms.items()
        ]
    )


def terms_table() -> pd.DataFrame:
    """The terms of the course in the order of their appearance: columns term, meaning, equation."""
    return pd.DataFrame([{"term": term} | asdict(word) for term, word in COURSE_GLOSSARY.items()])


def folded_html(table: pd.DataFrame, title: str) -> str:
    """A table for notebooks that opens when its title is clicked; every text is whole and escaped."""
    rows = [_row("th", table.columns), *(_row("td", cells) for cells in table.to_numpy())]
    return f"<details><summary><b>{html.escape(title)}</b></summary><table>{''.join(rows)}</table></details>"


def _row(tag: str, cells: Iterable) -> str:
    texts = (html.escape(str(cell)) for cell in cells)
    return "<tr>" + "".join(f'<{tag} style="text-align: left">{text}</{tag}>' for text in texts) + "</tr>"
