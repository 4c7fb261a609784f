"""The training room: from a recipe to a checkpoint folder.

    what                    where
    recipe                  sections.py (its fields), config.py (YAML, overrides, every problem at once)
    run                     loop.py, on setup.py (data, model, length) inside session.py (Accelerate, threads)
    one step                step.py, optimizer.py, schedules.py
    looking at the model    validation.py, samples.py
    stopping and going on   checkpoints.py (folders), state.py (their contents), resume.py, signals.py
    telling                 journal.py, on metrics.py and progress.py; report.py

Nothing is imported here, so that reading a recipe does not load accelerate.
"""
