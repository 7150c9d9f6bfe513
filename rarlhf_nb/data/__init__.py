"""Where prompts and texts come from: the pocket world, the paper's data sets, SmolLM2, and files of the user's own."""
