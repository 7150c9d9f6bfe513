"""The application on top of the library: what the notebooks and the command `rarlhf` call."""
