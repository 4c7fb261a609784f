"""The memory inspector: what each memory unit of a model does over a text, and what changes when one is changed."""
