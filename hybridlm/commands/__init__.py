"""The subcommands of `hybridlm`, a few to a file: each a function whose docstring is its --help, and its options.

A command parses, calls one function of the package and prints the result. What it needs is imported when it runs, so
that `hybridlm --help` does not wait for it.
"""
