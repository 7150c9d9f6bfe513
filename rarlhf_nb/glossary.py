"""What every logged key and every metric of the report means: formula, unit, over what, and when it is taken."""

from dataclasses import asdict, dataclass

import pandas as pd


@dataclass(frozen=True)
class Term:
    """One quantity. formula: plain text; over: which episodes or tokens it averages; taken: when it is measured."""

    formula: str
    unit: str
    over: str
    taken: str


ALL = "all B episodes of the iteration"
KEPT = "the kept(m) episodes with the lowest return (or environment reward, with rank_by = env_reward)"
UPDATED_TOKENS = "completion tokens, EOS included, padding not, of the updated episodes: the kept ones, or with the "
UPDATED_TOKENS += "Rockafellar-Uryasev estimator all B"
BEFORE = "at iteration m, by the policy that sampled, before its update"
EPOCHS = "during the update, averaged over its PPO epochs"
ONCE = "once an iteration"
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
    "kl_kept": Term("the same", "nats per completion", KEPT, BEFORE),
    "entropy": Term(
        "mean of -sum_a pi(a|s_t) log pi(a|s_t), pi as sampled (tempered, forbidden tokens out)",
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
        "prompt and completion tokens that went through a backward pass: the update's compute",
        "tokens",
        "the updated episodes",
        "summed over the PPO epochs of the iteration",
    ),
    "seconds": Term("wall time of the iteration", "seconds", "sampling, scoring and update", ONCE),
}

EXPLORED = "the completions of the last exploration, the first by p_0, later ones by the policy under the best token"
BATCH_TOKENS = "completion tokens, EOS included, padding not, of the mini-batch"
UPDATE = "at the gradient step, before it"
QUARK_GLOSSARY = {
    "step": Term("gradient steps, counted from 1", "count", "-", ONCE),
    "loss": Term("mean of -log_likelihood + kl_coef kl_per_token - entropy_coef entropy", "nats", BATCH_TOKENS, UPDATE),
    "log_likelihood": Term("mean of log p_theta(y_t|x, y_<t, r_k)", "nats per token", BATCH_TOKENS, UPDATE),
    "kl_per_token": Term(
        "mean of KL(p_0 || p_theta(.|r_k)), with kl_direction = policy_ref of KL(p_theta || p_0), exact",
        "nats per token",
        BATCH_TOKENS,
        UPDATE,
    ),
    "entropy": Term(
        "mean of -sum_a p_theta(a|x, y_<t, r_k) log p_theta, as sampled (tempered, forbidden tokens out)",
        "nats per token",
        BATCH_TOKENS,
        UPDATE,
    ),
    "learning_rate": Term("linear warm-up, then linear decay to 0", "none", "-", UPDATE),
    "gradient_examples": Term(
        "step * batch_size, to be compared with PPO's M * B * epochs", "episodes", "-", "summed since the start"
    ),
    "gradient_tokens": Term(
        "prompt and completion tokens that went through a backward pass", "tokens", "the mini-batch", UPDATE
    ),
    "pool_size": Term("N, scored completions", "episodes", "the pool", "after the last exploration"),
    "env_reward_mean": Term("mean of r; missing scores are left out", "logit", EXPLORED, "at the exploration"),
    "completion_length": Term("mean number of tokens, EOS included", "tokens", EXPLORED, "at the exploration"),
    "seconds": Term("wall time of the step", "seconds", "update, and exploration where the step begins with one", ONCE),
}

REPORT_GLOSSARY = {
    "reward": Term("mean of r", "logit", "all test episodes", TEST),
    "tail_reward": Term("mean of r", "logit", "episodes of prompts with prompt_score <= tail_threshold", TEST),
    "tail_reward_10": Term(
        "mean of r, the boundary episode counted with the fraction left",
        "logit",
        "episodes of the 10 % of prompts with the lowest prompt_score",
        TEST,
    ),
    "cvar_<p>": Term(
        "CVaR_alpha(r), alpha = p %: mean of the lowest alpha share of r, boundary fractional (eq. 6)",
        "logit",
        "the p % of test episodes with the lowest r",
        TEST,
    ),
    "reward[<group>]": Term("mean of r", "logit", "episodes of one of the rarer groups of prompts", TEST),
    "kl": Term("as in training, from the SFT policy", "nats per completion", "all test episodes", TEST),
    "normalised_reward": Term(
        "the reward as the classifier's probability: softmax or sigmoid of its logits; 1 - p where the sign is -1",
        "share",
        "all test episodes",
        TEST,
    ),
    "completion_length": Term("mean number of completion tokens, EOS included", "tokens", "all test episodes", TEST),
    "completion_perplexity": Term(
        "mean over completions of exp(-log p_base(completion | prompt) / tokens), those of 10,000 and more left out",
        "none",
        "all test episodes, under the base model",
        TEST,
    ),
    "dist_<n>": Term(
        "different n-grams / words, pooled; no interval, since repeating a text lowers it",
        "share",
        "the completions of the first sample, all together",
        TEST,
    ),
    "prompt_dist_<n>": Term(
        "mean over prompts of different n-grams / words among a prompt's completions",
        "share",
        "the first evaluation.repeated_prompts prompts, evaluation.repeated_samples completions each",
        TEST,
    ),
    "expected_maximum_toxicity": Term(
        "mean over prompts of the largest 1 - normalised_reward among a prompt's completions",
        "share",
        "as prompt_dist_<n>; only where the reward is civility",
        TEST,
    ),
    "toxicity_probability": Term(
        "share of prompts with a completion of 1 - normalised_reward >= 0.5",
        "share",
        "as prompt_dist_<n>; only where the reward is civility",
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


def glossary_table() -> pd.DataFrame:
    """All of them as one table: columns where, key, formula, unit, over, taken."""
    return pd.DataFrame(
        [
            {"where": where, "key": key} | asdict(term)
            for where, terms in {
                "training log": TRAINING_GLOSSARY,
                "Quark's log": QUARK_GLOSSARY,
                "report": REPORT_GLOSSARY,
            }.items()
            for key, term in terms.items()
        ]
    )
