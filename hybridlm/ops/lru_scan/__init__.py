"""See `reference.py`."""
