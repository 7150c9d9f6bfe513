"""Figures: functions that take tables and return plotly figures; nothing here trains or loads a model."""
