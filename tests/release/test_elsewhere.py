"""Exports, and what was pushed to a Hub, in an environment without hybridlm: the same logits to the last bit,
generation, saving again.

One child process for all: its environment is a new one that sees the libraries of this one, and not the package.
"""

import os
import re
import subprocess
from pathlib import Path

import torch
from models import make_ids, make_model
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline
from without_hybridlm import python_without_hybridlm

from hybridlm import (
    HybridLMForQuestionAnswering,
    HybridLMForSequenceClassification,
    HybridLMForTokenClassification,
    ops,
)
from hybridlm.model.mixers_hybridlm import MIXERS
from hybridlm.release.export import AUTO_CLASSES, export_checkpoint
from hybridlm.release.push import push_checkpoint

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

PATTERNS = [
    "fqbmru+gru nfsm",
    "(rglru bmru)*2",
    "lru bmru attention",
    "bmru+cmru+mingru attention acmru",
    "mamba2 lstm+bmru sliding_attention",
]
"""Every mixer, which the test asserts: all travel by the same files."""

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
    """Also on the Hub."""
    snippet = export_checkpoint(checkpoint, folder / "export", log=lambda _: None).snippet()
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    writer = pipeline("text-generation", model=AutoModelForCausalLM.from_pretrained(checkpoint), tokenizer=tokenizer)
    found = writer("She was", max_new_tokens=8, do_sample=False)[0]["generated_text"]
    want = {"text": found, "tokens": tokenizer("She was")["input_ids"], "snippet": snippet}
    want["repository"] = "owner/text"
    push_checkpoint(checkpoint, want["repository"], log=lambda _: None)
    torch.save(want | {"checks": ["text"]}, folder / "want.pt")


@torch.no_grad()
def make_repositories(hub, folder):
    """What there is on the Hub, by both ways: a private repository of two commits, which a token alone opens, and one
    of model.push_to_hub. Returns (name, revision, logits), and is what `want.pt` holds."""
    old, new = make_model("rglru bmru"), make_model("rglru bmru", seed=7)
    for model in (old, new):
        model.save_pretrained(folder / "pushed")
        push_checkpoint(folder / "pushed", "owner/name", private=True, log=lambda _: None)
    first = list(hub.repositories["owner/name"].commits)[-2]
    old.push_to_hub("owner/by-hand")
    ids = make_ids(2, 12)
    logits = {model: model(ids).logits for model in (old, new)}
    assert not torch.equal(*logits.values())
    found = [("owner/name", "main", logits[new]), ("owner/name", first, logits[old])]
    found.append(("owner/by-hand", "main", logits[old]))
    torch.save({"ids": ids, "repositories": found, "pushed": "owner/again", "token": "hf_owner"}, folder / "want.pt")
    return found


def test_all_works_where_hybridlm_is_not_installed(checkpoint, tmp_path, hub):
    """The last of the repositories is pushed again from there."""
    assert set(re.findall(r"\w+", " ".join(PATTERNS))) - {"2"} == set(MIXERS)
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
    with ops.using("torch"):
        repositories = make_repositories(hub, tmp_path)

    script = Path(__file__).with_name("elsewhere.py")
    caches = {"HF_HOME": "home", "HF_HUB_CACHE": "cache", "HF_MODULES_CACHE": "modules"}
    caches = {variable: str(tmp_path / name) for variable, name in caches.items()}
    online = {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_TOKEN": "hf_reader", "HF_HUB_DISABLE_XET": "1"}
    done = subprocess.run(
        [python, "-I", script, cases, tmp_path / "want.pt"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        env=os.environ | caches | online,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    exports, loaded = done.stdout.splitlines()[: len(made)], done.stdout.splitlines()[len(made) :]
    assert [line.split(":")[0] for line in exports] == sorted(made)
    assert loaded == [f"{name} {revision}" for name, revision, _ in repositories]
    again, by_hand = (hub.repositories[name] for name in ("owner/again", "owner/by-hand"))
    assert again.read("model.safetensors") == by_hand.read("model.safetensors")
    assert {name for name in by_hand.files() if name.endswith(".py")} < set(again.files())
    assert 'from_pretrained("owner/again", trust_remote_code=True)' in again.read("README.md").decode()
