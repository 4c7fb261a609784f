"""Uploads: what reaches the Hub, in how many commits, and what is said where it cannot be reached.

The Hub is a fake with the signatures of the real client, in front of the network.
"""

import json
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import create_autospec

import huggingface_hub
import pytest
import transformers.utils.hub as transformers_hub
from huggingface_hub import HfApi, ModelCard
from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled, RepositoryNotFoundError
from models import make_model

import hybridlm
from hybridlm.cli import main
from hybridlm.errors import UserError
from hybridlm.model.code_hybridlm import AUTO_MAP
from hybridlm.release import push as push_module
from hybridlm.release.push import push_checkpoint

CODE = {path.name for path in (Path(hybridlm.__file__).parent / "model").glob("*.py")} - {"__init__.py"}
WITH_CODE = CODE | {"LICENSE-CODE", "NOTICE-CODE", "config.json", "generation_config.json", "model.safetensors"}


class Hub:
    """What the client was told to do, and the files of the one repository that there is."""

    def __init__(self):
        self.files = {".gitattributes": b""}
        self.api = create_autospec(HfApi, instance=True)
        self.api.list_repo_files.side_effect = lambda *_, **__: sorted(self.files)
        self.api.upload_folder.side_effect = self.upload
        self.api.create_repo.side_effect = lambda repo_id, **_: SimpleNamespace(repo_id=repo_id)
        self.api.create_commit.side_effect = self.commit

    def upload(self, *, folder_path, ignore_patterns, delete_patterns, **_):
        """As the real one: files that are uploaded are not deleted; patterns without a wildcard are names."""
        new = {
            path.relative_to(folder_path).as_posix(): path.read_bytes()
            for path in Path(folder_path).rglob("*")
            if path.is_file() and path.name not in (ignore_patterns or [])
        }
        kept = {name: content for name, content in self.files.items() if name not in (delete_patterns or [])}
        self.files = kept | new
        return SimpleNamespace(commit_url="https://hub/commit/1")

    def commit(self, *, operations, **_):
        self.files |= {change.path_in_repo: Path(change.path_or_fileobj).read_bytes() for change in operations}

    @property
    def calls(self):
        return [call[0] for call in self.api.method_calls]


@pytest.fixture
def hub(monkeypatch):
    hub = Hub()
    monkeypatch.setattr(push_module, "HfApi", lambda **_: hub.api)
    return hub


def push(checkpoint, *args, **options):
    return push_checkpoint(checkpoint, *args, log=lambda _: None, **options)


def test_one_commit_holds_all_that_is_needed(hub, checkpoint):
    done = push(checkpoint, "owner/name", private=True)
    assert hub.calls == ["whoami", "create_repo", "list_repo_files", "upload_folder"]
    hub.api.create_repo.assert_called_once_with("owner/name", private=True, exist_ok=True)
    assert set(hub.files) == WITH_CODE | {".gitattributes", "tokenizer.json", "tokenizer_config.json", "README.md"}
    assert json.loads(hub.files["config.json"])["auto_map"] == AUTO_MAP
    assert hub.files["model.safetensors"] == (checkpoint / "model.safetensors").read_bytes()
    assert done.location == "owner/name"
    for text in (done.snippet(), hub.files["README.md"].decode()):
        assert 'AutoModelForCausalLM.from_pretrained("owner/name", trust_remote_code=True)' in text
    assert hub.files["README.md"].decode().splitlines()[8] == "# name"


def test_a_second_push_leaves_one_model_and_the_readme(hub, checkpoint, tmp_path):
    old = {"model-00001-of-00002.safetensors", "model.safetensors.index.json", "cells_old.py", "old_hybridlm.py"}
    theirs = {"README.md", "figure.png", "train.py", "logs/cells_of_a_table.py"}
    hub.files |= dict.fromkeys(old | theirs, b"before")
    push(checkpoint, "owner/name")
    assert not old & set(hub.files)
    assert {name for name in theirs if hub.files.get(name) == b"before"} == theirs

    folder = tmp_path / "with a card"
    make_model("lru").save_pretrained(folder)
    (folder / "README.md").write_text("My model.")
    push(folder, "owner/name")
    assert hub.files["README.md"] == b"My model."


def test_what_export_refuses_never_reaches_the_hub(hub, checkpoint, tmp_path):
    make_model("lru").save_pretrained(tmp_path / "broken")
    (tmp_path / "broken" / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(UserError, match="cannot be loaded"):
        push(tmp_path / "broken", "owner/name")
    assert hub.calls == ["whoami"]
    for name in ("name", "owner/name/more", "owner/na me", "owner/-name", ""):
        with pytest.raises(UserError, match="must be OWNER/NAME"):
            push(checkpoint, name)
    assert hub.calls == ["whoami"]


def answer(status, kind=HfHubHTTPError):
    request = SimpleNamespace(url="https://hub")
    return kind("the message\nmore", response=SimpleNamespace(status_code=status, headers={}, request=request))


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (answer(401), "does not accept the token"),
        (answer(401, RepositoryNotFoundError), "does not accept the token"),
        (answer(403), "may not write there"),
        (answer(500), r"answered 500 \(the message\)"),
        (HTTPError("no route to host"), r"cannot be reached \(no route to host\)"),
        (ConnectionError(), r"cannot be reached \(ConnectionError\)"),
        (OfflineModeIsEnabled("offline"), "HF_HUB_OFFLINE is set"),
    ],
)
@pytest.mark.parametrize("call", ["whoami", "create_repo", "upload_folder"])
def test_what_goes_wrong_on_the_way_is_one_message(hub, tmp_path, error, says, call):
    make_model("lru").save_pretrained(tmp_path / "model")
    getattr(hub.api, call).side_effect = error
    with pytest.raises(UserError, match=f"^--push owner/name: .*{says}"):
        push(tmp_path / "model", "owner/name")
    assert set(hub.files) == {".gitattributes"}


def test_the_real_client_without_a_token_and_offline(checkpoint, monkeypatch, capsys):
    argv = ["export", str(checkpoint), "--push", "owner/name"]
    monkeypatch.setattr(huggingface_hub.hf_api, "get_token", lambda: None)
    assert main(argv) == 2
    assert "--push owner/name: no token was found" in capsys.readouterr().err
    monkeypatch.setattr(huggingface_hub.hf_api, "get_token", lambda: "hf_token")
    assert main(argv) == 2  # tests/conftest.py sets HF_HUB_OFFLINE
    assert "HF_HUB_OFFLINE is set" in capsys.readouterr().err


def test_the_command(hub, checkpoint, capsys):
    assert main(["export", str(checkpoint), "--push", "owner/name"]) == 0
    hub.api.create_repo.assert_called_once_with("owner/name", private=None, exist_ok=True)
    out = capsys.readouterr().out
    assert "Committed: https://hub/commit/1" in out
    assert 'from_pretrained("owner/name", trust_remote_code=True)' in out


@pytest.fixture
def transformers_to(hub, monkeypatch):
    """transformers' own uploads go to the fake."""
    monkeypatch.setattr(transformers_hub, "hf_api", lambda: hub.api)
    monkeypatch.setattr("transformers.modeling_utils.hf_api", lambda: hub.api)
    monkeypatch.setattr(transformers_hub, "create_and_tag_model_card", lambda *_, **__: ModelCard("A card."))
    return hub


@pytest.mark.parametrize("way", ["push_to_hub", "save_pretrained"])
def test_models_push_their_code_and_are_left_as_they_were(transformers_to, tmp_path, way):
    hub, model = transformers_to, make_model("lru")
    if way == "push_to_hub":
        model.push_to_hub("owner/name", private=True)
    else:
        model.save_pretrained(tmp_path / "pushed", push_to_hub=True, repo_id="owner/name")
    assert WITH_CODE <= set(hub.files) <= WITH_CODE | {".gitattributes", "README.md"}
    assert json.loads(hub.files["config.json"])["auto_map"] == AUTO_MAP
    assert len(hub.api.create_commit.mock_calls) == 1

    model.save_pretrained(tmp_path / "plain")
    assert not list((tmp_path / "plain").glob("*.py"))
    assert "auto_map" not in (tmp_path / "plain" / "config.json").read_text()
