"""Whether a draft pays: assisted decoding and prompt lookup beside greedy decoding, on one text at a time.

Something cheap guesses the next tokens, a small draft model or the text's own past; one forward of the target verifies
them all. It keeps the guesses that it would have written itself, and adds one token of its own:

    accepted   = new tokens / forwards of the target - 1            guesses kept, on average, at one verification
    ratio      = seconds of greedy / seconds of the mode            above 1: the mode gains

The tokens are greedy's either way. The modes take turns on every text, and the median is taken over the rounds, so that
a machine with other work to do slows all of them alike.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hybridlm.data.shards import TokenShards
from hybridlm.errors import UserError
from hybridlm.evaluation.loading import quiet_transformers
from hybridlm.files import expanded
from hybridlm.training.config import load_config
from hybridlm.training.loop import pretrain
from hybridlm.training.sections import PretrainConfig

GREEDY, LOOKUP, DRAFT = "greedy", "prompt lookup", "draft model"
DRAFT_RECIPE = ("model.pattern=rglru*2", "model.hidden_size=96", "training.steps=300", "logging.samples.every=0")
"""What a draft's recipe has in another way than its target's, where nothing else is said: two layers, half as wide."""


@dataclass
class Row:
    """One mode on one kind of text."""

    text: str
    mode: str
    tokens_per_second: float
    """Median over the rounds."""
    ratio: float
    """Median of greedy's seconds over this mode's, round by round."""
    accepted: float
    same: bool
    """Whether every text is greedy's, token by token."""


def recipe_of(checkpoint: str | Path) -> PretrainConfig:
    """The recipe of the run that wrote RUN/final or RUN/checkpoints/step-N. Raises UserError where there is none."""
    return load_config(_recipe_file(checkpoint))


def _recipe_file(checkpoint: str | Path) -> Path:
    folder = expanded(checkpoint)
    for run in (folder.parent, folder.parent.parent):
        if (run / "config.yaml").is_file():
            return run / "config.yaml"
    raise UserError(
        f"checkpoint {checkpoint}: no run of `hybridlm pretrain` is around it (no config.yaml in {folder.parent}), so "
        "its data and tokenizer are not known. Give the final folder of a run, such as runs/demo/run/final."
    )


def train_draft(checkpoint: str | Path, run: str | Path, overrides: Sequence[str] = DRAFT_RECIPE) -> Path:
    """A small model with the target's tokenizer and data, trained in the run folder `run`; its checkpoint.

    overrides: of the target's recipe. A finished run is used again. Raises UserError as `pretrain` does, among others
    where `run` holds a draft of another recipe.
    """
    place = expanded(run)
    where = [f"run.folder={json.dumps(str(place.parent))}", f"run.name={json.dumps(place.name)}"]
    return pretrain(load_config(_recipe_file(checkpoint), [*overrides, *where])).checkpoint


def held_out_prompts(recipe: PretrainConfig, count: int, length: int) -> list[Tensor]:
    """`count` pieces of `length` tokens, (1, length) int64, spread over the texts of the recipe's validation split."""
    folder = recipe.data.folder if recipe.data.prepare is None else recipe.data.prepare.output
    shards = TokenShards(str(folder), "validation")
    if shards.n_tokens < count * length:
        raise UserError(
            f"data folder {folder}: its validation split has {shards.n_tokens} tokens; {count} prompts of {length} "
            f"need {count * length}. Ask for fewer or shorter ones."
        )
    tokens = torch.cat([torch.from_numpy(shards.document(i).astype("int64")) for i in range(shards.n_documents)])
    step = len(tokens) // count
    return [tokens[i * step : i * step + length].unsqueeze(0) for i in range(count)]


def repeated(prompts: Sequence[Tensor], times: int = 3) -> list[Tensor]:
    """Prompts of the same length that say their beginning `times` times, as lists, logs and code do."""
    return [prompt[:, : prompt.shape[1] // times].repeat(1, times) for prompt in prompts]


def deepened(model: PreTrainedModel, times: int) -> PreTrainedModel:
    """A model that writes the same as `model` with `times` as many layers: those added compute, and add zero.

    It shows what a draft would gain on a target that costs more, as guesses are accepted as often as before. Raises
    UserError for times below 1.
    """
    if times < 1:
        raise UserError(f"times={times}: must be at least 1.")
    pattern = " ".join([f"({model.config.pattern})"] * times)
    config = type(model.config).from_dict(model.config.to_dict() | {"pattern": pattern})
    deep = type(model)(config)
    deep.to(device=model.device, dtype=model.dtype)  # pyright: ignore[reportCallIssue]
    deep.load_state_dict(model.state_dict(), strict=False)
    with torch.no_grad():
        for name, parameter in deep.named_parameters():
            back = name.rpartition(".weight")[0].rpartition(".")[2] in ("out_proj", "o_proj", "down_proj")
            if back and name not in model.state_dict():
                parameter.zero_()
    return deep.eval()


def compare(
    target: PreTrainedModel,
    draft: PreTrainedModel,
    texts: dict[str, list[Tensor]],
    *,
    max_new_tokens: int = 96,
    guesses: int = 5,
    rounds: int = 5,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Row]:
    """A row for every kind of text and mode; texts: {kind: prompts, (1, T) int64 each}.

    guesses: tokens guessed at most before a verification. Both models must be in evaluation mode and share their token
    ids. Raises UserError where a number is below 1, or the vocabularies differ in size.
    """
    for name, value in (("max_new_tokens", max_new_tokens), ("guesses", guesses), ("rounds", rounds)):
        if value < 1:
            raise UserError(f"{name}={value}: must be at least 1.")
    if target.config.vocab_size != draft.config.vocab_size:
        raise UserError(
            f"the target has {target.config.vocab_size} tokens and the draft {draft.config.vocab_size}: a draft must "
            "be trained with the target's tokenizer."
        )
    assert draft.generation_config is not None
    draft.generation_config.num_assistant_tokens = guesses
    draft.generation_config.num_assistant_tokens_schedule = "constant"
    modes = {
        GREEDY: {},
        LOOKUP: {"prompt_lookup_num_tokens": guesses},
        DRAFT: {"assistant_model": draft},
    }
    rows = []
    for kind, prompts in texts.items():
        seconds: dict[str, list[float]] = {mode: [] for mode in modes}
        written: dict[str, list[Tensor]] = {}
        forwards: dict[str, int] = {}
        for turn in range(-1, rounds):  # the first one warms up, and is where tokens and forwards are counted
            for mode, options in modes.items():
                begun = clock()
                texts_of_mode, calls = _write(target, prompts, max_new_tokens, options)
                elapsed = clock() - begun
                if turn >= 0:
                    seconds[mode].append(elapsed)
                written.setdefault(mode, texts_of_mode)
                forwards.setdefault(mode, calls)
        rows += [_row(kind, mode, prompts, seconds, written, forwards) for mode in modes]
    return rows


@torch.inference_mode()
def _write(
    target: PreTrainedModel, prompts: list[Tensor], max_new_tokens: int, options: dict[str, Any]
) -> tuple[list[Tensor], int]:
    """What the target writes behind each prompt, and the number of its forwards."""
    calls = 0

    def count(*_: Any) -> None:
        nonlocal calls
        calls += 1

    # No end symbol: every mode writes the same number of tokens.
    settings = {"max_new_tokens": max_new_tokens, "do_sample": False, "pad_token_id": 0}
    hook = target.register_forward_pre_hook(count)
    ends, target.generation_config.eos_token_id = target.generation_config.eos_token_id, None  # pyright: ignore[reportOptionalMemberAccess]
    try:
        with quiet_transformers():  # it warns of how its own draft loop calls `generate`
            texts = [
                target.generate(  # pyright: ignore[reportCallIssue]
                    prompt.to(target.device), attention_mask=torch.ones_like(prompt), **settings, **options
                )
                for prompt in prompts
            ]
    finally:
        hook.remove()
        target.generation_config.eos_token_id = ends  # pyright: ignore[reportOptionalMemberAccess]
    return texts, calls


def _row(
    kind: str,
    mode: str,
    prompts: list[Tensor],
    seconds: dict[str, list[float]],
    written: dict[str, list[Tensor]],
    forwards: dict[str, int],
) -> Row:
    new = sum(text.shape[1] - prompt.shape[1] for text, prompt in zip(written[mode], prompts, strict=True))
    return Row(
        text=kind,
        mode=mode,
        tokens_per_second=new / statistics.median(seconds[mode]),
        ratio=statistics.median(base / own for base, own in zip(seconds[GREEDY], seconds[mode], strict=True)),
        accepted=new / forwards[mode] - 1,
        same=all(torch.equal(*pair) for pair in zip(written[mode], written[GREEDY], strict=True)),
    )


def table(rows: Sequence[Row]) -> str:
    """The rows as aligned text."""
    lines = [f"{'text':<12} {'mode':<14} {'tokens/s':>9} {'ratio':>6} {'accepted':>9}  same tokens"]
    for row in rows:
        lines.append(
            f"{row.text:<12} {row.mode:<14} {row.tokens_per_second:>9.1f} {row.ratio:>6.2f} {row.accepted:>9.2f}  "
            f"{'yes' if row.same else 'NO'}"
        )
    return "\n".join(lines)
