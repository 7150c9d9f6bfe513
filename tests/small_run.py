"""A run of seconds: the settings of the default profile made small."""

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
