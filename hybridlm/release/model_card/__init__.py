"""`hybridlm card`: the model card of a checkpoint, made from what its run left. `write.py` is where it begins."""
