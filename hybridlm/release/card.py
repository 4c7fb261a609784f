"""The README of a checkpoint: how to load it, what it is, whose the code is.

`hybridlm export` writes a small one, `hybridlm card` (model_card) one with all that is known. Both carry a mark, by
which the next export tells them from what somebody wrote. The mark of a full card has a checksum of the rest: whoever
changes a word of it makes it their own.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import ModelCard

from hybridlm.model.code_hybridlm import LICENCES
from hybridlm.model.versions_hybridlm import REQUIREMENT

TASKS = {
    "AutoModel": "feature-extraction",
    "AutoModelForCausalLM": "text-generation",
    "AutoModelForSequenceClassification": "text-classification",
    "AutoModelForTokenClassification": "token-classification",
    "AutoModelForQuestionAnswering": "question-answering",
}
"""Auto class -> what the Hub calls its task."""

PICTURE = "README_curves.png"
"""The picture of a full card, beside it."""
BENCHMARKS = ".eval_results/hybridlm.yaml"
"""Results that the Hub shows on the pages of benchmarks, beside a full card."""
WRITTEN = "# Written by `hybridlm card`."
"""First line of BENCHMARKS."""

_MARK = "<!-- Written by `hybridlm export`. Without this line the card is yours, and the next export keeps it. -->"
_SEAL = "<!-- Written by `hybridlm card` ({}). Whoever changes a word makes it their own, and it is kept. -->"
_SEALED = re.compile(re.escape(_SEAL).replace(re.escape("{}"), "([0-9a-f]{16})"))
_OPEN = "0" * 16
OPENING, CLOSING = "<!-- title, and how to load it -->", "<!-- the rest -->"
"""Around the part of a full card that an export writes anew."""

_FRONT = """\
---
library_name: transformers
pipeline_tag: {task}
tags:
- hybridlm
---
{mark}

"""
_EXPORTED = """\
# {title}

A `{architecture}` of the package hybridlm: {parameters:,} parameters, layers `{pattern}`.

The code of the model lies in this folder and needs torch and `{requirement}` only (written with torch
{torch}, transformers {transformers}); it refuses other releases of transformers. `trust_remote_code=True` runs it, so
read it first. Where the package hybridlm is imported, that runs instead.

```python
{snippet}
```

The Python files are part of hybridlm, under the Apache License 2.0: see {licences}. These say
nothing about the rights to the weights.
"""
_AT_HOME = """\
# {title}

A `{architecture}` of the package hybridlm: {parameters:,} parameters, layers `{pattern}`.

It loads where hybridlm is installed. `hybridlm export` writes it together with its code, for torch and
`{requirement}` alone.

```python
{snippet}
```
"""


def loading_snippet(auto_class: str, name: str, tokenizer: bool, code: bool = True, revision: str | None = None) -> str:
    """Python that loads `name`, a folder or a repository on the Hub, with its own code where hybridlm is not installed;
    or, without code, where it is. revision: a branch there."""
    # The tokenizer has no code of its own, but transformers loads the configuration first, and would ask at the prompt.
    trust = (f", revision={quoted(revision)}" if revision else "") + (", trust_remote_code=True" if code else "")
    lines = [f"# pip install torch '{REQUIREMENT}'"] if code else []
    lines.append(f"from transformers import {auto_class}{', AutoTokenizer' if tokenizer else ''}")
    lines += [""] if code else ["", "import hybridlm  # makes the model known to the Auto classes"]
    lines += [] if code else [""]
    lines.append(f"model = {auto_class}.from_pretrained({quoted(name)}{trust})")
    if tokenizer:
        lines.append(f"tokenizer = AutoTokenizer.from_pretrained({quoted(name)}{trust})")
    return "\n".join(lines)


def quoted(text: str) -> str:
    """A Python literal in double quotes, as this project writes them."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def is_own_card(text: str) -> bool:
    """Whether a README was written, or changed, by somebody."""
    return _MARK not in text and not is_full_card(text)


def has_own_card(folder: Path) -> bool:
    """Whether that of a checkpoint was."""
    return (folder / "README.md").is_file() and is_own_card(_text(folder))


def is_full_card(text: str) -> bool:
    """Whether it is as `hybridlm card` wrote it."""
    found = _SEALED.search(text)
    return found is not None and found[1] == _checksum(text)


def full_card(folder: Path) -> str | None:
    """The text of that of a checkpoint; None where there is none."""
    text = _text(folder) if (folder / "README.md").is_file() else ""
    return text if is_full_card(text) else None


def unsealed_mark() -> str:
    """The mark of a full card as it stands in the text that `sealed` is given."""
    return _SEAL.format(_OPEN)


def sealed(text: str) -> str:
    """A full card with the checksum in its mark."""
    return _SEALED.sub(_SEAL.format(_checksum(text)), text, count=1)


def moved(text: str, top: str, title: str) -> str:
    """A full card for another place. top: its new title, and how to load it."""
    card = ModelCard(text, ignore_metadata_errors=True)
    before, _, rest = card.text.partition(OPENING)
    _, _, behind = rest.partition(CLOSING)
    card.text = f"{before}{OPENING}\n\n{top.strip()}\n\n{CLOSING}{behind}"
    data: Any = card.data
    if data.eval_results:
        data.model_name = title
    return sealed(str(card))


def card(name: str, *, auto_class: str, architecture: str, pattern: str, parameters: int, tokenizer: bool) -> str:
    """The text of an export's README.md. name: what `from_pretrained` is given in the example."""
    top = card_top(
        name,
        auto_class=auto_class,
        architecture=architecture,
        pattern=pattern,
        parameters=parameters,
        tokenizer=tokenizer,
    )
    return _FRONT.format(task=TASKS[auto_class], mark=_MARK) + top


def card_top(
    name: str,
    *,
    auto_class: str,
    architecture: str,
    pattern: str,
    parameters: int,
    tokenizer: bool,
    code: bool = True,
    title: str | None = None,
) -> str:
    """Title, and how to load `name`; title None: its last part. code: whether the model's code lies beside it."""
    return (_EXPORTED if code else _AT_HOME).format(
        title=title or title_of(name),
        architecture=architecture,
        parameters=parameters,
        pattern=pattern,
        torch=torch.__version__.partition("+")[0],
        transformers=transformers.__version__,
        requirement=REQUIREMENT,
        snippet=loading_snippet(auto_class, name, tokenizer, code),
        licences=" and ".join(f"`{copied}`" for copied in LICENCES.values()),
    )


def title_of(name: str) -> str:
    """The last part of a name on the Hub, or of a path."""
    return name.rstrip("/").rpartition("/")[2]


def _text(folder: Path) -> str:
    return (folder / "README.md").read_text(encoding="utf-8", errors="replace")


def _checksum(text: str) -> str:
    return hashlib.sha256(_SEALED.sub(_SEAL.format(_OPEN), text, count=1).encode("utf-8", "replace")).hexdigest()[:16]
