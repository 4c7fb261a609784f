"""The releases of transformers that this code runs with; any other one is refused as soon as the code is loaded.

A checkpoint may carry the code to where another release is installed. transformers changes how caches are named and
handed on from one minor release to the next, and a model whose cache is not handed on writes wrong text, without an
error. So the first import of the configuration is this file: the one message comes before anything else can fail.
"""

import transformers

TESTED = "5.23"
"""The minor release that was tested."""

REQUIREMENT = "transformers>=5.23,<5.24"
"""The same, as pip and the package's metadata write it."""


def check_transformers(version: str) -> None:
    """Raises ImportError where `version` is of another minor release."""
    if ".".join(version.split(".")[:2]) != TESTED:
        raise ImportError(
            f"hybridlm was tested with transformers {TESTED}; installed is {version}, with which its models may write "
            f"wrong text. Run: pip install '{REQUIREMENT}'",
            name="transformers",
        )


check_transformers(transformers.__version__)
