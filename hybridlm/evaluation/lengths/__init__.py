"""Length generalisation: what a longer context is worth to a language model, in bits per byte of the same text.

labels.py (lengths as people write them), tokens.py (which bytes a token stands for), targets.py (which bytes are
predicted), windows.py (reading in pieces through the cache), estimates.py (errors, and where more context stops
helping), measure.py, report.py, picture.py.
"""
