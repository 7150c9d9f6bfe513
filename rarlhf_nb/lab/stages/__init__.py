"""The stages of a run, in the order in which a run takes them: data, training, evaluation, report.

Each function gives one `Stage`, which names the files of the run folder that it reads and writes, and works in `run()`.
"""
