"""What RA-RLHF is compared with, besides the base model, SFT and RLHF: one module per method.

No module here imports another method's.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "best_of_n": ["BestOfN"],
        "dexperts": ["DExperts"],
        "prompted": ["choose_prefix", "prompted_policy"],
        "quark": ["QuarkTrainer"],
    },
)
