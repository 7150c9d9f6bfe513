"""What readers see: figures, widgets, the report's page, the served explorer, the glossary and the exercises.

A figure's function takes tables and returns a plotly figure; nothing here trains or loads a model.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "explore": ["explorer_page", "serve"],
        "page": ["build_page"],
        "pictures": ["use_renderer"],
        "widgets": ["live_training", "risk_explorer", "schedule_designer"],
    },
)
