"""The README of an exported checkpoint: how to load it, what it is, whose the code is."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers

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

_MARK = "<!-- Written by `hybridlm export`. Without this line the card is yours, and the next export keeps it. -->"

_CARD = """\
---
library_name: transformers
pipeline_tag: {task}
tags:
- hybridlm
---
{mark}

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


def loading_snippet(auto_class: str, name: str, tokenizer: bool) -> str:
    """Python that loads `name`, a folder or a repository on the Hub, where hybridlm is not installed."""
    # The tokenizer has no code of its own, but transformers loads the configuration first, and would ask at the prompt.
    lines = [
        f"# pip install torch '{REQUIREMENT}'",
        f"from transformers import {auto_class}{', AutoTokenizer' if tokenizer else ''}",
        "",
        f"model = {auto_class}.from_pretrained({quoted(name)}, trust_remote_code=True)",
    ]
    if tokenizer:
        lines.append(f"tokenizer = AutoTokenizer.from_pretrained({quoted(name)}, trust_remote_code=True)")
    return "\n".join(lines)


def quoted(text: str) -> str:
    """A Python literal in double quotes, as this project writes them."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def has_own_card(folder: Path) -> bool:
    """Whether the README of a checkpoint was written, or changed, by somebody."""
    path = folder / "README.md"
    return path.is_file() and _MARK not in path.read_text(encoding="utf-8", errors="replace")


def card(name: str, *, auto_class: str, architecture: str, pattern: str, parameters: int, tokenizer: bool) -> str:
    """The text of README.md. name: what `from_pretrained` is given in the example; its last part is the title."""
    return _CARD.format(
        task=TASKS[auto_class],
        mark=_MARK,
        title=name.rpartition("/")[2],
        architecture=architecture,
        parameters=parameters,
        pattern=pattern,
        torch=torch.__version__.partition("+")[0],
        transformers=transformers.__version__,
        requirement=REQUIREMENT,
        snippet=loading_snippet(auto_class, name, tokenizer),
        licences=" and ".join(f"`{copied}`" for copied in LICENCES.values()),
    )
