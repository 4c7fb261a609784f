"""The evaluation room: what a finished checkpoint is worth, and what it writes.

loading.py (a checkpoint folder to model and tokenizer), bits_per_byte.py, bigram.py (the baseline), generate.py,
reading.py (a text into a state to generate from), info.py, plots.py, lengths (what a longer context is worth),
modes_*.py (a table of what works with which model). Nothing is imported here, so that one command does not pay for
another's imports.
"""
