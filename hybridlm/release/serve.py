"""`transformers serve` for checkpoints of hybridlm.

transformers 5.23 takes the class that a checkpoint names from its own module, and so finds none that came from
elsewhere, `trust_remote_code` or not. In this process it finds ours. The server itself is transformers' own.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from transformers.utils.import_utils import is_serve_available

from hybridlm.data.tokenizer import load_tokenizer
from hybridlm.errors import UserError, install_command
from hybridlm.evaluation.loading import locate, read_config
from hybridlm.model.modeling_hybridlm import HybridLMForCausalLM
from hybridlm.safe_loading import check_weights


def serve(options: Sequence[str]) -> None:
    """Runs `transformers serve` with these options until it is ended. Raises UserError without the packages that it
    needs, for continuous batching, which would fail every request, and where the first option is no checkpoint, or one
    whose weights are pickles."""
    if "--continuous-batching" in options:
        raise UserError(
            "--continuous-batching: transformers has it for attention alone, and the server would fail every request. "
            "Leave it out."
        )
    if not is_serve_available():
        raise UserError(f"serving needs fastapi, uvicorn and openai: {install_command('serve')}.")
    if options and not options[0].startswith("-"):
        _check(options[0])
    from transformers.cli.transformers import main

    be_found()
    sys.argv = ["transformers", "serve", *options]
    main()


def _check(checkpoint: str) -> None:
    if not Path(checkpoint).exists() and {"@", ":"} & set(checkpoint):  # a revision, or a file, on the Hub
        return
    source, what = locate(checkpoint), f"checkpoint {checkpoint}"
    if Path(source).is_dir():
        read_config(source, what)
        check_weights(source, what)
        load_tokenizer(source)


def be_found() -> None:
    """Lets transformers' server find the class of a language model of hybridlm."""
    from transformers.cli.serving import model_manager

    # Its module, not sys.modules': transformers' __init__ may have run twice, and made two.
    theirs = model_manager.transformers  # pyright: ignore[reportPrivateImportUsage]
    setattr(theirs, HybridLMForCausalLM.__name__, HybridLMForCausalLM)
