"""Models trained alike and put side by side: one recipe, the same data, tokens and search for the learning rate.

study    what is compared, read from YAML
jobs     the runs that follow from it, as commands of `hybridlm pretrain`
running  processes that do them, resumable, and what they left as records
page     the records as tables and a picture
"""
