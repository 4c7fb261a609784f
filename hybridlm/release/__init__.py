"""The release room: a checkpoint leaves this package.

export.py (a folder that loads with torch and transformers alone), push.py (the same, uploaded to the Hugging Face Hub),
card.py (the README of both). Nothing is imported here, so that one command does not pay for another's imports.
"""
