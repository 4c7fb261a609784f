"""Uploads that reach no Hub, or meet errors that only real ones make; model.push_to_hub. (test_hub.py has the rest.)"""

import errno
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import create_autospec

import huggingface_hub
import pytest
import torch
from hub_repository import Blob
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled, RepositoryNotFoundError
from models import make_model
from transformers import AutoTokenizer

import hybridlm
from hybridlm import HybridLMForCausalLM
from hybridlm.cli import main
from hybridlm.errors import UserError
from hybridlm.model.code_hybridlm import AUTO_MAP
from hybridlm.release import push as push_module
from hybridlm.release.card import BENCHMARKS, WRITTEN, is_own_card
from hybridlm.release.export import Export
from hybridlm.release.push import push_checkpoint

CODE = {path.name for path in (Path(hybridlm.__file__).parent / "model").glob("*.py")} - {"__init__.py"}
WITH_CODE = CODE | {"LICENSE-CODE", "NOTICE-CODE", "config.json", "generation_config.json", "model.safetensors"}


def push(checkpoint, *args, **options):
    return push_checkpoint(checkpoint, *args, log=lambda _: None, **options)


def test_what_export_refuses_never_reaches_the_hub(hub, checkpoint, tmp_path):
    make_model("lru").save_pretrained(tmp_path / "broken")
    (tmp_path / "broken" / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(UserError, match="cannot be loaded"):
        push(tmp_path / "broken", "owner/name")
    for name in ("name", "owner/name/more", "owner/na me", "owner/-name", ""):
        with pytest.raises(UserError, match="must be OWNER/NAME"):
            push(checkpoint, name)
    assert hub.asked == ["whoami"]


def test_old_files_of_the_model_go_and_others_stay(hub, checkpoint):
    push(checkpoint, "owner/name")
    repo = hub.repositories["owner/name"]
    old = {"model-00001-of-00002.safetensors", "model.safetensors.index.json", "cells_old.py", "old_hybridlm.py"}
    theirs = {"figure.png", "train.py", "logs/cells_of_a_table.py"}
    for name in old | theirs:
        repo.edit(name, "before")
    push(checkpoint, "owner/name")
    assert not old & set(repo.files())
    assert theirs < set(repo.files())


def test_what_is_left_of_another_tokenizer_goes(hub, checkpoint, tmp_path):
    """A chat template, or a vocabulary, would become a part of the new one."""
    push(checkpoint, "owner/name")
    repo = hub.repositories["owner/name"]
    old = {"chat_template.jinja", "additional_chat_templates/tools.jinja", "added_tokens.json", "vocab.txt"}
    for name in old:
        repo.edit(name, "{}")
    make_model("lru", hidden_size=16).save_pretrained(tmp_path / "without")
    push(tmp_path / "without", "owner/name")
    assert old | {"tokenizer.json"} < set(repo.files())
    push(checkpoint, "owner/name")
    assert not old & set(repo.files())
    assert {"tokenizer.json", "tokenizer_config.json"} < set(repo.files())


def test_results_of_other_weights_go(hub, checkpoint):
    """Also beside a README that somebody wrote; those that somebody wrote stay."""
    push(checkpoint, "owner/name")
    repo = hub.repositories["owner/name"]
    repo.edit("README.md", "My words.")
    repo.edit(BENCHMARKS, "- mine")
    push(checkpoint, "owner/name")
    assert repo.read(BENCHMARKS) == b"- mine"
    repo.edit(BENCHMARKS, f"{WRITTEN}\n- value: 1\n")
    push(checkpoint, "owner/name")
    assert BENCHMARKS not in repo.files()
    assert repo.read("README.md") == b"My words."


@pytest.mark.parametrize("name", ["my branch", "a..b", "/a", "a/", "a.lock", "-a", "a//b", "a^", "@", "0" * 40])
def test_no_repository_is_made_for_a_branch_that_cannot_be(hub, checkpoint, name):
    with pytest.raises(UserError, match="must be the name of a branch as git has them"):
        push(checkpoint, "owner/name", revision=name)
    assert not hub.asked


@pytest.mark.parametrize(
    "name", ["README.md", "README_curves.png", "chat_template.jinja", ".eval_results/hybridlm.yaml"]
)
def test_what_lies_outside_of_the_checkpoint_is_not_published(hub, checkpoint, tmp_path, name):
    """An archive from a stranger may hold links to files of whoever unpacks it."""
    secret, folder = tmp_path / "secret", shutil.copytree(checkpoint, tmp_path / "final")
    secret.write_text("README_curves.png")
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).symlink_to(secret)
    with pytest.raises(UserError, match=f"{Path(name).name} is a link to .*secret, outside of the folder"):
        push(folder, "owner/name")
    assert not hub.repositories


def test_weights_may_lie_elsewhere(hub, small, tmp_path):
    folder = shutil.copytree(small, tmp_path / "final")
    (folder / "model.safetensors").rename(tmp_path / "weights.safetensors")
    (folder / "model.safetensors").symlink_to(tmp_path / "weights.safetensors")
    push(folder, "owner/name")
    assert "model.safetensors" in hub.repositories["owner/name"].files()


def test_a_card_that_nobody_touched_tells_of_the_last_model(hub, checkpoint, tmp_path):
    make_model("lru").save_pretrained(tmp_path / "lru")
    push(tmp_path / "lru", "owner/name")
    push(checkpoint, "owner/name")
    repo = hub.repositories["owner/name"]
    assert b"layers `rglru bmru`" in repo.read("README.md")
    words = repo.read("README.md").decode().replace("# name", "# The name")
    repo.edit("README.md", words)
    push(tmp_path / "lru", "owner/name")
    assert repo.read("README.md").decode() == words


def answer(status, kind=HfHubHTTPError):
    request = SimpleNamespace(url="https://hub")
    return kind("the message\nmore", response=SimpleNamespace(status_code=status, headers={}, request=request))


def inside(error):
    """As an upload hands on what it failed of."""
    outer = RuntimeError("Error while uploading 'model.safetensors' to the Hub.")
    outer.__cause__ = error
    return outer


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (answer(401), "does not accept the token"),
        (answer(401, RepositoryNotFoundError), "does not accept the token"),
        (answer(403), r"may not write there \(403: the message more\)"),
        (answer(413), r"answered 413: the message more\.$"),
        (answer(500), r"answered 500: the message more\."),
        (inside(answer(504)), r"answered 504: the message more\."),
        (HTTPError("no route to host"), r"cannot be reached \(no route to host\)"),
        (inside(HTTPError("no route to host")), r"cannot be reached \(no route to host\)"),
        (ConnectionError(), r"cannot be reached \(ConnectionError\)"),
        (OfflineModeIsEnabled("offline"), "HF_HUB_OFFLINE is set"),
        (RuntimeError("the store is out of order"), r"the upload failed \(the store is out of order\)"),
        (json.JSONDecodeError("Expecting value", "<html>", 0), r"the upload failed \(Expecting value"),
        (OSError(errno.ENOSPC, "No space left on device"), r"the upload failed \(\[Errno 28\] No space left"),
    ],
)
@pytest.mark.parametrize("call", ["whoami", "create_repo", "create_commit"])
def test_what_goes_wrong_on_the_way_is_one_message(monkeypatch, small, error, says, call):
    api = create_autospec(HfApi, instance=True)
    api.model_info.return_value = SimpleNamespace(id="owner/name", sha="0" * 40, private=False, siblings=[])
    getattr(api, call).side_effect = error
    monkeypatch.setattr(push_module, "HfApi", lambda **_: api)
    made = Export("owner/name", "HybridLMForCausalLM", "lru", 1, tokenizer=False)
    monkeypatch.setattr(push_module, "write_export", lambda *_: made)  # seconds, in all
    with pytest.raises(UserError, match=f"^owner/name: .*{says}"):
        push(small, "owner/name")


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("small") / "model"
    make_model("lru", hidden_size=16).save_pretrained(folder)
    return folder


def test_the_real_client_without_a_token_offline_and_without_a_server(small, monkeypatch, capsys):
    argv = ["push", str(small), "owner/name"]
    monkeypatch.setattr(huggingface_hub.hf_api, "get_token", lambda: None)
    assert main(argv) == 2
    assert "hybridlm push: owner/name: no token was found" in capsys.readouterr().err
    monkeypatch.setattr(huggingface_hub.hf_api, "get_token", lambda: "hf_token")
    assert main(argv) == 2  # tests/conftest.py sets HF_HUB_OFFLINE
    assert "HF_HUB_OFFLINE is set" in capsys.readouterr().err
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    assert main(argv) == 2
    assert "owner/name: the Hub cannot be reached ([Errno 111] Connection refused). Try" in capsys.readouterr().err


@pytest.mark.parametrize("way", ["push_to_hub", "save_pretrained"])
def test_models_push_their_code_and_are_left_as_they_were(hub, tmp_path, way):
    model = make_model("lru")
    if way == "push_to_hub":
        model.push_to_hub("owner/name", private=True)
    else:
        model.save_pretrained(tmp_path / "pushed", push_to_hub=True, repo_id="owner/name")
    repo = hub.repositories["owner/name"]
    assert set(repo.files()) == WITH_CODE | {".gitattributes", "README.md"}
    assert json.loads(repo.read("config.json"))["auto_map"] == AUTO_MAP
    assert len(repo.commits) == 2
    assert repo.private == (way == "push_to_hub")

    model.save_pretrained(tmp_path / "plain")
    assert not list((tmp_path / "plain").glob("*.py"))
    assert "auto_map" not in (tmp_path / "plain" / "config.json").read_text()


def test_models_push_a_card_and_leave_what_somebody_wrote(hub, checkpoint):
    AutoTokenizer.from_pretrained(checkpoint).push_to_hub("owner/name")
    repo = hub.repositories["owner/name"]
    repo.edit("README.md", "---\nlicense: mit\n---\n\nMy words.\n")
    make_model("lru").push_to_hub("owner/name")
    assert repo.read("README.md") == b"---\nlicense: mit\n---\n\nMy words.\n"

    del repo.files()["README.md"]
    make_model("lru").push_to_hub("owner/name", tags=["made-by-hand"])
    text = repo.read("README.md").decode()
    assert "- hybridlm\n- made-by-hand\n---" in text
    assert "layers `lru`" in text
    assert 'AutoTokenizer.from_pretrained("owner/name", trust_remote_code=True)' in text
    assert not is_own_card(text)
    make_model("rglru bmru").push_to_hub("owner/name", revision="other")
    assert b"layers `rglru bmru`" in repo.read("README.md", "other")
    assert repo.read("README.md").decode() == text
    repo.make_branch("theirs", None)
    repo._add("theirs", "by hand", repo.files("theirs") | {"README.md": Blob(b"Of the branch.\r\n", large=False)})
    make_model("lru").push_to_hub("owner/name", revision="theirs")
    assert repo.read("README.md", "theirs") == b"Of the branch.\r\n"


def test_what_would_be_read_in_place_of_a_model_goes(hub):
    """Weights in one file, which from_pretrained looks for before it looks for several."""
    model, other = make_model("lru", seed=1), make_model("lru", seed=2)
    model.push_to_hub("owner/name")
    repo = hub.repositories["owner/name"]
    for name in (BENCHMARKS, "notes.txt"):
        repo.edit(name, "before")
    other.push_to_hub("owner/name", max_shard_size="4KB", revision="shards")
    other.push_to_hub("owner/name", max_shard_size="4KB")
    for revision in ("main", "shards"):
        files = set(repo.files(revision))
        assert "model.safetensors.index.json" in files
        assert "notes.txt" in files
        assert not {"model.safetensors", BENCHMARKS} & files
    loaded = HybridLMForCausalLM.from_pretrained("owner/name")
    assert all(map(torch.equal, loaded.state_dict().values(), other.state_dict().values()))
