"""Scans outside the checkpoint's own code. Each folder holds one operation; `reference.py` defines what is right."""
