"""Risk-averse fine-tuning of language models: RA-RLHF (Chaudhary et al., NeurIPS 2024), notebooks first."""

__version__ = "0.1.0"
