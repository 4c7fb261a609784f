"""Recipes that ship inside the package, so that they are found wherever it is installed: `demo.yaml` of `hybridlm
demo`."""
