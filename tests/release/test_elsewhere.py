"""Exports in an environment without hybridlm: the same logits to the last bit, generation, saving again.

One child process for all: its environment is a new one that sees the libraries of this one, and not the package.
"""

import os
import shutil
import subprocess
from pathlib import Path

import torch
from models import PATTERNS, make_ids, make_model
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline
from without_hybridlm import python_without_hybridlm

from hybridlm import (
    HybridLMForQuestionAnswering,
    HybridLMForSequenceClassification,
    HybridLMForTokenClassification,
    ops,
)
from hybridlm.release.export import AUTO_CLASSES, export_checkpoint

HEADS = {
    "sequence": HybridLMForSequenceClassification,
    "token": HybridLMForTokenClassification,
    "question": HybridLMForQuestionAnswering,
}

GREEDY = [
    (first_row, {"max_new_tokens": 10, "do_sample": False, "pad_token_id": 0} | options)
    for first_row, options in ((0, {}), (0, {"cache_implementation": "static"}), (2, {"prompt_lookup_num_tokens": 2}))
]
"""Generation with rows padded on the left, with fixed addresses, and with steps that are taken back."""

SAVED_AGAIN = PATTERNS[-1:]
"""What saving and loading again costs seconds of; it does not depend on the layers."""


def export(model, folder):
    model.save_pretrained(folder / "source")
    export_checkpoint(folder / "source", folder / "export", log=lambda _: None)


def padded_ids():
    ids, mask = make_ids(3, 12), torch.ones(3, 12, dtype=torch.long)
    mask[0, :5] = mask[1, :1] = 0
    return {"ids": ids, "mask": mask}


@torch.no_grad()
def make_language_model(pattern, folder):
    model, want = make_model(pattern, learn_initial_state="attention" in pattern), padded_ids()
    export(model, folder)
    ids, mask = want["ids"], want["mask"]
    want["logits"] = model(ids).logits
    want["padded"] = model(ids, attention_mask=mask).logits[mask.bool()]
    want["hidden"] = model.model(ids).last_hidden_state
    want["written"] = [
        (rows, options, model.generate(ids[rows:], attention_mask=mask[rows:], **options)) for rows, options in GREEDY
    ]
    want["checks"] = ["language_model", "saved_again"] if pattern in SAVED_AGAIN else ["language_model"]
    torch.save(want, folder / "want.pt")


@torch.no_grad()
def make_fine_tuned(name, folder):
    torch.manual_seed(3)
    config = make_model("rglru+bmru attention", num_labels=4, pad_token_id=0).config
    model, want = HEADS[name](config).eval(), padded_ids()
    export(model, folder)
    want["auto"] = AUTO_CLASSES[type(model).__name__]
    outputs = model(want["ids"], attention_mask=want["mask"])
    want["outputs"] = {name: value for name, value in outputs.items() if name.endswith("logits")}
    torch.save(want | {"checks": ["fine_tuned"]}, folder / "want.pt")


def make_text(checkpoint, folder):
    """With a copy in the place where the Hub's cache keeps OWNER/NAME."""
    snippet = export_checkpoint(checkpoint, folder / "export", log=lambda _: None).snippet()
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    writer = pipeline("text-generation", model=AutoModelForCausalLM.from_pretrained(checkpoint), tokenizer=tokenizer)
    found = writer("She was", max_new_tokens=8, do_sample=False)[0]["generated_text"]
    want = {"text": found, "tokens": tokenizer("She was")["input_ids"], "snippet": snippet}
    revision, repository = "0" * 40, folder.parents[1] / "hub" / "models--owner--name"
    shutil.copytree(folder / "export", repository / "snapshots" / revision)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(revision)
    want["repository"] = "owner/name"
    torch.save(want | {"checks": ["text"]}, folder / "want.pt")


def test_exports_work_where_hybridlm_is_not_installed(checkpoint, tmp_path):
    python = python_without_hybridlm(tmp_path / "environment")
    cases = tmp_path / "cases"
    made = {}
    for i, pattern in enumerate(PATTERNS):
        made[f"pattern{i:02d}"] = (make_language_model, pattern)
    made |= {name: (make_fine_tuned, name) for name in HEADS} | {"text": (make_text, checkpoint)}
    for name, (make, what) in made.items():
        (cases / name).mkdir(parents=True)
        with ops.using("torch"):  # as it will be there; the C kernels round the last bit in other ways
            make(what, cases / name)

    script = Path(__file__).with_name("elsewhere.py")
    caches = {"HF_HOME": "home", "HF_HUB_CACHE": "hub", "HF_MODULES_CACHE": "modules"}
    caches = {variable: str(tmp_path / name) for variable, name in caches.items()}
    done = subprocess.run(
        [python, "-I", script, cases],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        env=os.environ | caches,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert [line.split(":")[0] for line in done.stdout.splitlines()] == sorted(made)
