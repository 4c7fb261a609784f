"""The small card of an upload: what the model is, how to load it, whose the code is.

`hybridlm export` and `model.push_to_hub` write it. A seal in it has a checksum of the rest, by which the next one tells
it from what somebody wrote: whoever changes a word makes it their own.
"""

import hashlib
import re
from collections.abc import Iterable
from typing import Any

import torch
import transformers

from .code_hybridlm import LICENCES
from .versions_hybridlm import REQUIREMENT

TASKS = {
    "AutoModel": "feature-extraction",
    "AutoModelForCausalLM": "text-generation",
    "AutoModelForSequenceClassification": "text-classification",
    "AutoModelForTokenClassification": "token-classification",
    "AutoModelForQuestionAnswering": "question-answering",
}
"""Auto class -> what the Hub calls its task."""

_SEAL = "<!-- Written by `hybridlm {}` ({}). Whoever changes a word makes it their own, and it is kept. -->"
_SEALED = re.compile(re.escape(_SEAL).replace(re.escape("{}"), "{}").format("(card|export)", "([0-9a-f]{16})"))
_OPEN = "0" * 16

_CARD = """\
---
library_name: transformers
pipeline_tag: {task}
tags:
{tags}
---
{seal}

{top}"""
_AWAY = """\
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


def card(name: str, *, auto_class: str, tags: Iterable[str] = (), **facts: Any) -> str:
    """The text of README.md. name: what `from_pretrained` is given in the example. tags: beside "hybridlm". facts:
    what `card_top` takes."""
    lines = "\n".join(f"- {tag}" for tag in dict.fromkeys(("hybridlm", *tags)))
    top = card_top(name, auto_class=auto_class, **facts)
    return sealed(_CARD.format(task=TASKS[auto_class], tags=lines, seal=open_seal("export"), top=top))


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
    return (_AWAY if code else _AT_HOME).format(
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


def title_of(name: str) -> str:
    """The last part of a name on the Hub, or of a path."""
    return name.rstrip("/").rpartition("/")[2]


def open_seal(command: str) -> str:
    """The seal of a card of that command (card or export) as it stands in the text that `sealed` is given."""
    return _SEAL.format(command, _OPEN)


def sealed(text: str) -> str:
    """A card with the checksum in its seal."""
    return _SEALED.sub(lambda seal: _SEAL.format(seal[1], _checksum(text)), text, count=1)


def sealed_by(text: str) -> str | None:
    """The command that wrote a card; None where somebody wrote it, or changed it since."""
    found = _SEALED.search(text)
    return found[1] if found is not None and found[2] == _checksum(text) else None


def _checksum(text: str) -> str:
    opened = _SEALED.sub(lambda seal: _SEAL.format(seal[1], _OPEN), text, count=1)
    return hashlib.sha256(opened.encode("utf-8", "replace")).hexdigest()[:16]
