"""Pushes through huggingface_hub's own client to a Hub on this machine: what is there afterwards, what a push that
breaks off leaves, what is said. (test_elsewhere.py loads from there where hybridlm is not installed.)

One client serves all tests: importing torch and transformers takes longer than all of them.
"""

import json
import threading
from pathlib import Path

import pytest
from hub_client import HubClient
from hub_server import DROP, LOSE, HubServer
from models import make_model
from transformers import AutoModelForCausalLM

import hybridlm

CODE = {path.name for path in (Path(hybridlm.__file__).parent / "model").glob("*.py")} - {"__init__.py"}
MODEL = CODE | {"LICENSE-CODE", "NOTICE-CODE", "config.json", "generation_config.json", "model.safetensors"}
OWN_CARD = "---\nlicense: mit\n---\nMy model.\n\n![](README_curves.png)\n"


@pytest.fixture(scope="module")
def server():
    with HubServer() as server:
        yield server
    assert not server.broken


@pytest.fixture(scope="module")
def client(server, tmp_path_factory):
    client = HubClient(server.url, tmp_path_factory.mktemp("client"))
    yield client
    client.close()


@pytest.fixture
def hub(server, client):
    """The server as if it were new, and nothing left behind by the client."""
    server.repositories.clear()
    server.objects.clear()
    server.asked.clear()
    server.faults.clear()
    yield server
    assert not list(client.temporary.iterdir())


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A checkpoint without a tokenizer or a card."""
    folder = tmp_path_factory.mktemp("model") / "final"
    make_model("rglru bmru").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """The same with other weights, a card that somebody wrote, and a picture beside it: two large files."""
    folder = tmp_path_factory.mktemp("other") / "final"
    make_model("rglru bmru", seed=7).save_pretrained(folder)
    (folder / "README.md").write_text(OWN_CARD)
    (folder / "README_curves.png").write_bytes(b"\x89PNG\0" + bytes(range(256)))
    return folder


def weights(folder):
    return (folder / "model.safetensors").read_bytes()


def test_one_commit_holds_all(hub, client, checkpoint):
    done = client.command("push", checkpoint, "owner/name", "--private", "--message", "The first one")
    assert (done.code, done.err) == (0, "")
    repo = hub.repositories["owner/name"]
    assert repo.private
    assert repo.messages == ["initial commit", "The first one"]
    assert set(repo.files()) == MODEL | {".gitattributes", "README.md", "tokenizer.json", "tokenizer_config.json"}
    assert repo.read("model.safetensors") == weights(checkpoint)
    assert 'from_pretrained("owner/name", trust_remote_code=True)' in repo.read("README.md").decode()
    assert f"Committed: {hub.url}/owner/name/commit/{repo.sha()}\n" in done.out
    assert done.out.endswith('tokenizer = AutoTokenizer.from_pretrained("owner/name", trust_remote_code=True)\n')

    again = client.command("push", checkpoint, "owner/name", "--private")
    assert again.code == 0
    assert f"Nothing has changed since {hub.url}/owner/name/commit/{repo.sha()}\n" in again.out
    assert len(repo.commits) == 2
    assert hub.asked.count("object") == 1


def test_a_second_push_is_a_second_commit(hub, client, model, other):
    """Over what model.push_to_hub left, in shards, with a README that somebody changed there."""
    assert client.push_model(model, "owner/name", max_shard_size="8KB").code == 0
    repo = hub.repositories["owner/name"]
    shards = {name for name in repo.files() if name.startswith("model-") or name.endswith(".index.json")}
    assert len(shards) > 2
    assert set(repo.files()) - shards == (MODEL - {"model.safetensors"}) | {".gitattributes", "README.md"}
    repo.edit("README.md", "Changed there.")
    repo.edit("notes.txt", "Theirs.")
    first = repo.sha()

    assert client.command("push", model, "owner/name").code == 0
    assert set(repo.files()) == MODEL | {".gitattributes", "README.md", "notes.txt"}
    assert repo.read("README.md") == b"Changed there."
    assert repo.read("model.safetensors") == weights(model)
    assert shards < set(repo.files(first))

    assert client.command("push", other, "owner/name").code == 0
    assert repo.read("README.md").decode() == OWN_CARD
    assert repo.read("model.safetensors") == weights(other) != weights(model)
    assert len(repo.commits) == 6


def test_a_branch_of_its_own(hub, client, model, other):
    assert client.command("push", model, "owner/name").code == 0
    repo = hub.repositories["owner/name"]
    main = repo.sha()
    for _ in range(2):  # made, then found
        done = client.command("push", other, "owner/name", "--revision", "runs/b")
        assert done.code == 0
        assert 'from_pretrained("owner/name", revision="runs/b", trust_remote_code=True)' in done.out
    assert repo.sha() == main
    assert repo.read("model.safetensors", "runs/b") == weights(other)
    assert len(repo.commits) == 3


def test_a_drop_is_waited_out(hub, client, model):
    hub.fail("object", DROP, times=1)
    hub.fail("preupload", 503, times=1)
    done = client.command("push", model, "owner/name")
    assert done.code == 0
    assert done.waited == 2
    assert hub.repositories["owner/name"].read("model.safetensors") == weights(model)


def test_what_broke_off_goes_on(hub, client, other):
    """One of two large files arrives, then the network is gone: nothing is committed, and only the other one is sent
    when the same command runs again."""
    hub.fail("object", DROP, skip=1)
    done = client.command("push", other, "owner/name")
    assert done.code == 2
    assert done.err.splitlines()[-1].startswith("hybridlm push: owner/name: the Hub cannot be reached (")
    assert done.err.endswith("run the same command again. Weights that have arrived are not sent twice.\n")
    repo = hub.repositories["owner/name"]
    assert set(repo.files()) == {".gitattributes"}
    (arrived,) = hub.objects

    hub.faults.clear()
    hub.asked.clear()
    assert client.command("push", other, "owner/name").code == 0
    assert hub.asked.count("object") == 1
    assert arrived in {blob.oid for blob in repo.files().values()}
    assert set(repo.files()) >= MODEL
    assert len(repo.commits) == 2


@pytest.mark.parametrize(("how", "commits"), [(503, 1), (DROP, 1), (LOSE, 2)])
def test_a_commit_that_fails_is_whole_or_not_there(hub, client, model, how, commits):
    """LOSE: it was made, and only the answer was lost."""
    hub.fail("commit", how, times=1)
    done = client.command("push", model, "owner/name")
    assert done.code == 2
    assert "Nothing is half-committed: run the same command again." in done.err
    repo = hub.repositories["owner/name"]
    assert len(repo.commits) == commits
    assert client.command("push", model, "owner/name").code == 0
    assert len(repo.commits) == 2
    assert set(repo.files()) >= MODEL
    assert hub.asked.count("object") == 1


def test_a_commit_of_somebody_else_meanwhile(hub, client, model):
    assert client.command("push", model, "owner/name").code == 0
    repo = hub.repositories["owner/name"]
    hub.fail("commit", lambda: repo.edit("config.json", "{}"), times=1)
    hub.repositories["owner/name"].edit("model-00001-of-00002.safetensors", "old")
    done = client.command("push", model, "owner/name")
    assert done.code == 2
    assert "somebody else has committed to it meanwhile (412: A commit has happened since." in done.err
    assert client.command("push", model, "owner/name").code == 0
    assert set(repo.files()) == MODEL | {".gitattributes", "README.md"}
    assert json.loads(repo.read("config.json"))["model_type"] == "hybridlm"


def test_ctrl_c_in_the_middle_of_an_upload(hub, client, model):
    begun, go_on = threading.Event(), threading.Event()

    def hold():
        begun.set()
        go_on.wait(60)

    hub.fail("object", hold, times=1)
    client.begin("push", model, "owner/name")
    assert begun.wait(60)
    client.press_ctrl_c()
    done = client.finish()
    go_on.set()
    assert (done.code, done.err) == (130, "hybridlm push: stopped by Ctrl-C.\n")
    assert len(hub.repositories["owner/name"].commits) == 1
    assert client.command("push", model, "owner/name").code == 0


def refused(hub, client, *argv, **options):
    """The one message of a push that uploads nothing."""
    done = client.command("push", *argv, **options)
    assert done.code == 2
    assert not {"object", "commit"} & set(hub.asked)
    (line,) = done.err.splitlines()
    return line.removeprefix("hybridlm push: ")


@pytest.mark.parametrize(
    ("token", "name", "says"),
    [
        (None, "owner/name", "owner/name: no token was found. Log in with `hf auth login`, or set HF_TOKEN"),
        ("hf_old", "owner/name", "owner/name: the Hub does not accept the token (401). Log in again with"),
        ("hf_reader", "owner/name", "owner/name: the token may not write there (403: You don't have the rights to"),
        ("hf_owner", "others/name", "others/name: the token may not write there (403: You don't have the rights to"),
        ("hf_owner", "name", "'name': must be OWNER/NAME, "),
    ],
)
def test_who_may_not(hub, client, model, token, name, says):
    assert refused(hub, client, model, name, token=token).startswith(says)
    assert not hub.repositories


def test_a_reader_of_a_repository_that_is_there(hub, client, model, other):
    assert client.command("push", model, "owner/name").code == 0
    hub.asked.clear()
    said = refused(hub, client, other, "owner/name", token="hf_reader")
    assert said.startswith("owner/name: the token may not write there (403: Authorization error.). Give a name")


def test_the_network_is_down_from_the_start(hub, client, model):
    hub.fail("*", DROP)
    said = refused(hub, client, model, "owner/name")
    assert said.startswith("owner/name: the Hub cannot be reached (")
    assert said.endswith("Try again, or export to a folder.")


def test_a_public_repository_does_not_become_private(hub, client, model):
    assert client.push_model(model, "owner/name").code == 0
    hub.asked.clear()
    said = refused(hub, client, model, "owner/name", "--private")
    assert said.startswith("--private: owner/name is on the Hub already, and is public. Nothing was uploaded.")


def test_a_card_that_the_hub_cannot_read(hub, client, model, tmp_path):
    folder = tmp_path / "final"
    AutoModelForCausalLM.from_pretrained(model).save_pretrained(folder)
    (folder / "README.md").write_text("---\nlicense: [mit\n---\nMine.")
    said = refused(hub, client, folder, "owner/name")
    assert said.startswith("owner/name: the upload failed (Invalid metadata in README.md. - bad YAML")


def test_no_room_for_the_export(hub, client, model):
    said = refused(hub, client, model, "owner/name", room=4096)
    assert said.startswith(f"the export cannot be written to {client.temporary} before it is uploaded (")
    assert said.endswith("set TMPDIR to a folder with room for the weights.")
    assert not hub.repositories


def test_words_that_say_nothing(hub, client, model):
    assert refused(hub, client, model, "owner/name", "--message", " ").startswith("--message: it is empty.")
    for branch in ("", "0" * 40):
        said = refused(hub, client, model, "owner/name", "--revision", branch)
        assert said.startswith(f"--revision {branch!r}: must be the name of a branch")
    assert not hub.asked
