"""What the child process of test_elsewhere.py does, where hybridlm is not installed.

    python elsewhere.py FOLDER want.pt    # exports; repositories of the Hub that HF_ENDPOINT names

FOLDER/NAME/export is an export, FOLDER/NAME/want.pt what its model gave where it was exported, in the same version of
torch and on the same machine: everything has to be equal to the last bit. Prints one line for each export, or
repository.
"""

import sys
from pathlib import Path

import torch
import transformers
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    pipeline,
)

HEADS = (AutoModelForSequenceClassification, AutoModelForTokenClassification, AutoModelForQuestionAnswering)


def load(auto, folder, **options):
    """A model of the folder's own code, which is the one that was asked for and not some other copy."""
    torch.manual_seed(99)  # nothing may depend on what is drawn while loading
    model = auto.from_pretrained(folder, trust_remote_code=True, **options).eval()
    package, name = type(model).__module__.split(".")[:2]
    assert (package, name) == ("transformers_modules", Path(folder).name), type(model).__module__
    return model


def check_language_model(model, want):
    assert torch.equal(model(want["ids"]).logits, want["logits"])
    padded = model(want["ids"], attention_mask=want["mask"]).logits[want["mask"].bool()]
    assert torch.equal(padded, want["padded"])
    for rows, options, tokens in want["written"]:
        prompt = {"input_ids": want["ids"][rows:], "attention_mask": want["mask"][rows:]}
        assert torch.equal(model.generate(**prompt, **options), tokens), options


def code(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*.py")}


def language_model(folder, want):
    """The same logits and tokens."""
    check_language_model(load(AutoModelForCausalLM, folder / "export"), want)


def saved_again(folder, want):
    """Every class loads, and is saved again so that every class loads from there."""
    export, again, base_again = folder / "export", folder / f"{folder.name}_again", folder / f"{folder.name}_base"
    model, base = load(AutoModelForCausalLM, export), load(AutoModel, export)
    assert torch.equal(base(want["ids"]).last_hidden_state, want["hidden"])
    model.save_pretrained(again)
    base.save_pretrained(base_again)
    assert code(again) == code(base_again) == code(export) != {}
    check_language_model(load(AutoModelForCausalLM, again), want)
    check_language_model(model, want)  # after another copy of the code came in
    check_language_model(load(AutoModelForCausalLM, base_again), want)  # the embedding is the output projection
    for auto in HEADS:
        head = load(auto, base_again, num_labels=3)
        first = next(iter(head(want["ids"], attention_mask=want["mask"]).values()))
        assert bool(first.isfinite().all())


def fine_tuned(folder, want):
    """A head comes back with its weights, also from where it is saved again."""
    auto = getattr(transformers, want["auto"])
    again = folder / f"{folder.name}_again"
    model = load(auto, folder / "export")
    model.save_pretrained(again)
    for head in (model, load(auto, again)):
        outputs = head(want["ids"], attention_mask=want["mask"])
        for name, value in want["outputs"].items():
            assert torch.equal(outputs[name], value), name
    assert code(again) == code(folder / "export")


def on_the_hub(model, repository, again):
    """A repository is loaded file by file. Saved again, the model needs its repository no longer."""
    loaded = AutoModelForCausalLM.from_pretrained(repository, trust_remote_code=True)
    ids = torch.arange(1, 9).unsqueeze(0)
    assert torch.equal(loaded(ids).logits, model(ids).logits)
    loaded.save_pretrained(again)
    assert repository not in (again / "config.json").read_text()
    assert torch.equal(load(AutoModelForCausalLM, again)(ids).logits, model(ids).logits)


def refusal(auto, folder):
    try:
        auto.from_pretrained(folder, trust_remote_code=False)
    except ValueError as error:
        return str(error)
    return "none: the code ran without being trusted"


def text(folder, want):
    """Tokenizer, pipeline, the lines that an export prints, and a refusal where the code is not trusted."""
    export = str(folder / "export")
    tokenizer = AutoTokenizer.from_pretrained(export, trust_remote_code=True)
    assert tokenizer("She was")["input_ids"] == want["tokens"]
    writer = pipeline("text-generation", model=export, tokenizer=export, trust_remote_code=True)
    found = writer("She was", max_new_tokens=8, do_sample=False)[0]["generated_text"]
    assert found == want["text"], (found, want["text"])
    names = {}
    exec(want["snippet"], names)
    ids = torch.tensor([names["tokenizer"]("She was")["input_ids"]])
    continued = names["model"].generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False)
    assert names["tokenizer"].decode(continued[0], skip_special_tokens=True) == want["text"]
    on_the_hub(names["model"], want["repository"], folder / "from_the_hub")
    for auto in (AutoConfig, AutoModelForCausalLM):
        assert "trust_remote_code=True" in refusal(auto, export)


def check_exports(folder):
    checks = {check.__name__: check for check in (language_model, saved_again, fine_tuned, text)}
    for case in sorted(folder.iterdir()):
        want = torch.load(case / "want.pt")
        for name in want["checks"]:
            checks[name](case, want)
        print(f"{case.name}: {', '.join(want['checks'])}")


def check_repositories(file):
    want = torch.load(file)
    for name, revision, logits in want["repositories"]:
        model = AutoModelForCausalLM.from_pretrained(name, revision=revision, trust_remote_code=True).eval()
        assert torch.equal(model(want["ids"]).logits, logits)
        print(name, revision)
    model.push_to_hub(want["pushed"], token=want["token"])


@torch.no_grad()
def main(folder, file):
    try:
        import hybridlm
    except ImportError:
        pass
    else:
        raise AssertionError(f"hybridlm is installed here: {hybridlm.__file__}")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    check_exports(folder)
    check_repositories(file)
    assert not any(name.partition(".")[0] == "hybridlm" for name in sys.modules)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
