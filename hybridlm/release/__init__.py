"""The release room: a checkpoint leaves this package.

export.py (a folder that loads with torch and transformers alone), push.py (the same, uploaded to the Hugging Face Hub),
card.py (the README of both), model_card (the card of a checkpoint, with all that its run left). Nothing is imported
here, so that one command does not pay for another's imports.
"""
