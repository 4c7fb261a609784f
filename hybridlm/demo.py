"""The demo: the whole path from two novels to text, through the same functions as every other run.

prepare -> pretrain -> measure beside two baselines -> picture -> load back as any transformers model -> write.

    FOLDER/data         token shards and tokenizer
    FOLDER/run          the run: config.yaml, metrics.jsonl, checkpoints, final (the model)
    FOLDER/loss.png     the loss curve

A second call over a finished folder trains nothing and shows everything again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import torch

from hybridlm.data.shards import TokenShards
from hybridlm.errors import OtherSettingsError, UserError
from hybridlm.training.config import load_config
from hybridlm.training.loop import RunResult, pretrain
from hybridlm.training.metrics import read_rows

PROMPT = "It is a truth"


@dataclass
class DemoResult:
    """What the demo found and where it is."""

    bits_per_byte: float
    """Of the trained model on the validation split."""
    bits_per_byte_untrained: float | None
    """Of the same model before training; None where the recipe did not validate at the start."""
    bits_per_byte_bigram: float
    """Of an interpolated token bigram of the training split, with the same tokenizer."""
    checkpoint: Path
    """The model, for `from_pretrained`."""
    picture: Path | None
    """The loss curve; None without matplotlib."""
    sample: str
    """What the model wrote."""


def demo(folder: str | Path = "runs/demo", *, overrides: Sequence[str] = ()) -> DemoResult:
    """Runs the demo below `folder` and prints what it does. overrides: of the recipe, such as "training.steps=100".

    Raises UserError as `prepare` and `pretrain` do, among others where `folder` holds a demo with other settings.
    """
    folder = Path(os.path.expanduser(folder))
    recipe = resources.files("hybridlm.recipes") / "demo.yaml"
    places = {"data.prepare.output": folder / "data", "run.folder": folder, "run.name": "run"}
    with resources.as_file(recipe) as path:
        config = load_config(
            path, [f"{name}={json.dumps(str(place))}" for name, place in places.items()] + [*overrides]
        )
    try:
        result = pretrain(config)
    except OtherSettingsError as error:
        raise UserError(f"{error.found}Give the old settings back, or another --folder.") from error
    assert config.data.prepare is not None, "the demo's recipe prepares its data"
    untrained, bigram = _compare(result, folder / "data")
    picture = _picture(result, folder / "loss.png")
    sample = _write(result.checkpoint)
    _next_steps(result.checkpoint)
    bits = result.validation["bits_per_byte"]
    return DemoResult(bits, untrained, bigram, result.checkpoint, picture, sample)


def _compare(result: RunResult, data: Path) -> tuple[float | None, float]:
    """Prints bits per byte of the model, the untrained model and the bigram; returns the last two."""
    from hybridlm.evaluation.bigram import bigram_baseline

    train, validation = TokenShards(data, "train"), TokenShards(data, "validation")
    starts = [row for row in read_rows(result.metrics) if "bits_per_byte" in row and row["step"] == 0]
    untrained = starts[0]["bits_per_byte"] if starts else None
    bigram = bigram_baseline(train, validation)["bits_per_byte"]
    bits = result.validation["bits_per_byte"]
    by = f"{abs(1 - bits / bigram):.1%} {'fewer' if bits < bigram else 'more'}"
    print(f"\nValidation: the end of each novel, {validation.n_bytes:,} bytes that were not trained on.")
    if untrained is not None:
        print(f"  {untrained:.3f} bits per byte   the untrained model")
    print(f"  {bigram:.3f} bits per byte   an interpolated bigram with the same tokenizer")
    print(f"  {bits:.3f} bits per byte   this model: {by} than the bigram")
    return untrained, bigram


def _picture(result: RunResult, out: Path) -> Path | None:
    from hybridlm.evaluation.plots import loss_curve

    try:
        picture = loss_curve(result.metrics, out)
    except UserError as error:  # the demo is worth having without its picture
        print(f"No picture of the loss: {error}")
        return None
    print(f"\nLoss curve: {picture}")
    return picture


def _write(checkpoint: Path) -> str:
    """Loads the checkpoint as any transformers model and streams a text from a pipeline."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

    from hybridlm.evaluation.generate import Stream
    from hybridlm.evaluation.loading import quiet_transformers

    with quiet_transformers():
        model = AutoModelForCausalLM.from_pretrained(checkpoint)
        tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    write = pipeline("text-generation", model=model, tokenizer=tokenizer)
    print(f"Checkpoint: {checkpoint}, loaded back with AutoModelForCausalLM.from_pretrained. It writes:\n")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        written = write(PROMPT, max_new_tokens=200, do_sample=True, temperature=0.7, streamer=Stream(tokenizer))
    return written[0]["generated_text"]


def _next_steps(checkpoint: Path) -> None:
    print(f'\nMore:  hybridlm generate {checkpoint} "Anne"')
    print(f"       hybridlm info {checkpoint}")
    print("       hybridlm prepare --help      to begin with your own text")
