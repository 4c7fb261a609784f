"""Whose what is, and how to cite it. The patent notice is the one of NOTICE, word by word."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources

import hybridlm

MEMORY_UNITS = ("bmru", "cmru", "acmru", "fqbmru")
"""Mixers that the patent applications are about."""

_SOFTWARE = """\
@software{{hybridlm,
  title = {{hybridlm: language models that mix fading and persistent memory}},
  author = {{{{The hybridlm authors}}}},
  version = {{{version}}},
  license = {{Apache-2.0}}
}}"""
_PAPER = """\
@article{degeeter2026parallelizable,
  title = {Parallelizable memory recurrent units},
  author = {De Geeter and Lambrechts and Ernst and Drion},
  year = {2026},
  journal = {arXiv:2601.09495},
  url = {https://arxiv.org/abs/2601.09495}
}"""


def patent_notice(mixers: Sequence[str]) -> str:
    """That of NOTICE on one line; "" for a model without memory recurrent units."""
    if not set(mixers) & set(MEMORY_UNITS):
        return ""
    notice = (resources.files("hybridlm.model") / "NOTICE").read_text(encoding="utf-8")
    _, _, behind = notice.partition("Patents\n-------\n")
    return " ".join(behind.partition("\n\n")[0].split())


def bibtex(mixers: Sequence[str]) -> str:
    """The package, and the paper of the memory recurrent unit where the model has one; as CITATION.cff says."""
    entries = [_SOFTWARE.format(version=hybridlm.__version__)]
    return "\n\n".join([*entries, *([_PAPER] if set(mixers) & set(MEMORY_UNITS) else [])])
