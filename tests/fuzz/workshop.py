"""A small checkpoint, its data, a state and recipes, made once; and folders of them that are worn out by inputs."""

import json
import os
import random
import shutil
from contextlib import chdir, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

import torch

from hybridlm import HybridLMConfig, HybridLMForCausalLM
from hybridlm.data import PrepareConfig, TokenShards, prepare
from hybridlm.data.tokenizer import load_tokenizer
from hybridlm.evaluation.reading import read_book
from hybridlm.evaluation.report import evaluate_checkpoint, write_json
from hybridlm.machine import machine
from hybridlm.training.checkpoints import write_sealed
from hybridlm.training.config import load_config
from hybridlm.training.resume import frozen_settings

SENTENCE = "the sea was calm and a grey ship went slowly past our old house while she wrote one more letter to him"
RECIPE = """\
data: {folder: data, sequence_length: 16}
model: {pattern: rglru bmru, hidden_size: 16, num_attention_heads: 2}
training: {steps: 2, batch_size: 2}
optimizer: {lr: 2e-3}
schedule: {warmup_steps: 1}
validation: {every: 1}
checkpoint: {every: 1, keep: 2}
run: {folder: runs}
"""
STUDY = """\
recipe: recipe.yaml
models: {one: {model.pattern: rglru}, two: {model.pattern: lru bmru}}
rates: [1e-3, 2e-3]
search: {training.steps: 2}
final: {training.steps: 3}
seeds: [0, 1]
lengths: [8, 16]
"""
LEFTOVERS = (".partial", ".old-", ".unfinished", ".lock", ".gone-", ".tmp")


def make(folder: Path) -> Path:
    """Everything that is damaged later: `model`, `data`, `book.txt`, `book.state`, `prompts.jsonl`, `recipe.yaml`,
    `study.yaml`, `run`; `trained`, the run of a checkpoint."""
    folder.mkdir(parents=True)
    rng = random.Random(0)
    words = SENTENCE.split()
    lines = [" ".join(rng.choices(words, k=rng.randint(5, 12))).capitalize() + "." for _ in range(60)]
    (folder / "book.txt").write_text("\n".join(lines), encoding="utf-8")
    (folder / "short.txt").write_text(lines[0], encoding="utf-8")
    (folder / "prompts.jsonl").write_text('{"prompt": "The sea"}\n{"prompt": "Her", "n": 1}\n', encoding="utf-8")
    (folder / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    (folder / "study.yaml").write_text(STUDY, encoding="utf-8")
    with chdir(folder), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        sources = [{"path": "book.txt", "documents": "line"}]
        options = {"vocab_size": 270, "validation": {"share": 0.1}, "shard_tokens": 400}
        prepare(PrepareConfig(sources=sources, output="data", **options), lambda _: None)
        _model("data/tokenizer", "model")
        read_book("model", "short.txt", "book.state")
        _trained()
    (folder / "run").mkdir()
    rows = "".join(f'{{"step": {step}, "loss": {5 - step}.5, "lr": 0.001}}\n' for step in (1, 2, 3))
    (folder / "run" / "metrics.jsonl").write_text(rows, encoding="utf-8")
    return folder


def _model(tokenizer_folder: str, out: str) -> None:
    tokenizer = load_tokenizer(tokenizer_folder)
    torch.manual_seed(0)
    special = {f"{name}_token_id": tokenizer.bos_token_id for name in ("bos", "eos", "pad")}
    sizes = {"vocab_size": 270, "hidden_size": 16, "num_attention_heads": 2, "state_size": 16, "intermediate_size": 32}
    HybridLMForCausalLM(
        HybridLMConfig(pattern="rglru bmru attention sliding_attention", sliding_window=8, **sizes, **special)
    ).save_pretrained(out)
    tokenizer.save_pretrained(out)


def _trained() -> None:
    """What a training of two steps leaves, without the training."""
    config = load_config("recipe.yaml")
    facts = {"step": 2, "total_steps": 2, "tokens": 64, "seconds": 1.5, "epsilon": 0.0, "processes": 1}
    settings = {"settings": frozen_settings(config), "data_fingerprint": TokenShards("data", "train").fingerprint}

    def fill(final: Path) -> None:
        shutil.copytree("model", final, dirs_exist_ok=True)
        (final / "training_state").mkdir()
        (final / "training_state" / "state.json").write_text(json.dumps(facts | settings), encoding="utf-8")

    write_sealed(Path("trained/final"), fill)
    measured = evaluate_checkpoint("trained/final", "short.txt", context=8)
    write_json("trained/final/evaluation/short-8.json", measured)
    row = {"loss": 4.5, "lr": 0.002, "epsilon": 0.0, "grad_norm": 1.0, "tokens_per_second": 50.0}
    rows = [row | {"step": step, "tokens": 32 * step, "seconds": 0.5 * step} for step in (1, 2)]
    rows.append({"step": 2, "bits_per_byte": 3.5, "loss": 4.4, "n_bytes": 90, "n_tokens": 40, "windows": 3})
    Path("trained/metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows), encoding="utf-8")
    shutil.copy("recipe.yaml", "trained/config.yaml")
    session = {"step": 0, "command": "hybridlm pretrain", "processes": 1} | machine(torch.device("cpu"))
    Path("trained/sessions.jsonl").write_text(json.dumps(session) + "\n", encoding="utf-8")


Listing = dict[str, tuple[int, int, int]]


def listing(folder: Path) -> Listing:
    """Of every file and folder below: its kind, size and time of change."""
    found: Listing = {}
    for root, folders, files in os.walk(folder):
        for name in folders:
            found[os.path.relpath(os.path.join(root, name), folder)] = (1, 0, 0)
        for name in files:
            facts = os.lstat(os.path.join(root, name))
            found[os.path.relpath(os.path.join(root, name), folder)] = (0, facts.st_size, facts.st_mtime_ns)
    return found


def leftovers(found: Listing) -> list[str]:
    """What is half-written."""
    return [path for path in found if any(mark in Path(path).name for mark in LEFTOVERS)]


class Bench:
    """A copy of what was made, to be worked in, and made anew where an input changed it."""

    def __init__(self, made: Path, place: Path):
        self.made, self.place = made, place
        self.fresh()

    def fresh(self) -> None:
        shutil.rmtree(self.place, ignore_errors=True)
        shutil.copytree(self.made, self.place)
        self.before = listing(self.place)

    def changes(self) -> tuple[Listing, list[str]]:
        """Everything below as it is now, and the paths of what is new, other or gone."""
        now = listing(self.place)
        paths = now.keys() | self.before.keys()
        return now, sorted(path for path in paths if now.get(path) != self.before.get(path))
