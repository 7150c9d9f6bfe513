"""What the course's words mean, and every logged key and metric: formula, unit, over what, and when it is taken."""

import html
from collections.abc import Iterable
from dataclasses import asdict, dataclass

import pandas as pd


@dataclass(frozen=True)
class Term:
    """One quantity. formula: plain text; over: which episodes or tokens it averages; taken: when it is measured."""

    formula: str
    unit: str
    over: str
    taken: str


@dataclass(frozen=True)
class Word:
    """A word of the course. equation: its number in the paper's draft, where it has one."""

    meaning: str
    equation: str = ""


COURSE_GLOSSARY = {
    "prompt": Word("The first tokens of a human text; the policy goes on from there."),
    "completion": Word("What the policy writes after a prompt, token by token, up to a set length."),
    "episode": Word("One prompt with one completion."),
    "policy": Word("The language model that is trained: it gives every next token a probability."),
    "logit": Word("A model's raw score before it becomes a probability; 0 is undecided between two classes."),
    "reward": Word("The classifier's logit for prompt and completion together; higher is better.", "3"),
    "prompt score": Word("The reward model's logit for a prompt alone, before anyone has completed it."),
    "tail prompt": Word("A prompt whose score is at or below the task's threshold: a hard one."),
    "SFT": Word("Supervised fine-tuning: next-token prediction on wanted texts; it gives the start of all RL methods."),
    "reference policy": Word("The SFT policy, frozen; the distance from it is measured and paid for.", "3"),
    "KL": Word(
        "How far a policy is from the reference: the mean over its completions of the summed log-ratio of the two, "
        "in nats per completion.",
        "3",
    ),
    "kl_coef, β": Word(
        "The price of one nat of KL in units of reward; fixed, or moved towards a target KL by a controller.",
        "3; controller 4, 12",
    ),
    "dense reward": Word(
        "A reward for each token: minus β times its log-ratio, and at the last token the reward on top.", "5"
    ),
    "return": Word("The sum of an episode's dense rewards: its reward minus β times its KL."),
    "RLHF": Word("Training for the highest mean reward minus β KL; here with PPO, every episode kept.", "3"),
    "PPO": Word(
        "Proximal policy optimisation: makes tokens with a positive advantage more likely and others less, in several "
        "passes over one batch, each token only as far as the clip allows."
    ),
    "ratio": Word("A token's probability now over its probability when it was sampled; PPO clips it to 1 ± 0.2."),
    "critic, value": Word("A second head on the policy's network that guesses the return still to come.", "13"),
    "advantage": Word("How much better things went from a token on than the critic guessed."),
    "GAE": Word(
        "Generalised advantage estimation: advantages from rewards and values, between one step ahead (λ = 0) and "
        "the whole rest of the episode (λ = 1)."
    ),
    "tail": Word("The lowest share α of some returns or rewards.", "6"),
    "VaR": Word("Value at risk: the best value of the tail, its boundary.", "6"),
    "CVaR": Word("Conditional value at risk: the mean of the tail; at α = 1 the mean of all.", "6"),
    "α, trained": Word("The tail share that a policy was trained on; 1 is plain RLHF.", "6, 8-10"),
    "α, measured": Word("The tail share at which any policy is looked at afterwards.", "6"),
    "soft-risk schedule": Word(
        "How many episodes each iteration keeps: all for n iterations, then fewer, the share α from ρM on.", "8-10"
    ),
    "kept": Word("The number of episodes with the lowest return that an iteration trains on: a count.", "8-10"),
    "RA-RLHF": Word("Risk-averse RLHF, the paper's method: PPO on the kept episodes only (tail selection).", "11-13"),
    "RU": Word("Rockafellar-Uryasev: the second estimator of CVaR; every episode stays in, with another reward."),
    "perplexity": Word(
        "How surprised a model is by a text: 1 over the geometric mean of its tokens' probabilities; lower is better."
    ),
    "Dist-n": Word("Different n-grams over words in a set of completions; low means that it repeats itself."),
    "bootstrap interval": Word("The middle 95 % of a statistic over redrawn prompts: how sure a number is."),
    "paired difference": Word("Two methods compared on the same prompts or seeds, so that what they share cancels."),
}

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


def terms_table() -> pd.DataFrame:
    """The words of the course in the order in which it meets them: columns term, meaning, equation."""
    return pd.DataFrame([{"term": term} | asdict(word) for term, word in COURSE_GLOSSARY.items()])


def folded_html(table: pd.DataFrame, title: str) -> str:
    """A table for notebooks, behind its title until that is clicked: whole texts, every one escaped."""
    rows = [_row("th", table.columns), *(_row("td", cells) for cells in table.to_numpy())]
    return f"<details><summary><b>{html.escape(title)}</b></summary><table>{''.join(rows)}</table></details>"


def _row(tag: str, cells: Iterable) -> str:
    texts = (html.escape(str(cell)) for cell in cells)
    return "<tr>" + "".join(f'<{tag} style="text-align: left">{text}</{tag}>' for text in texts) + "</tr>"
