"""A card of `hybridlm card` in exports and uploads: all of it, with the way to load the new place."""

import shutil
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import create_autospec

import pytest
from huggingface_hub import HfApi, ModelCard

from hybridlm import HybridLMForCausalLM
from hybridlm.errors import UserError
from hybridlm.release import card
from hybridlm.release import push as push_module
from hybridlm.release.export import export_checkpoint
from hybridlm.release.model_card.contents import CardOptions
from hybridlm.release.model_card.write import write_card
from hybridlm.release.push import push_checkpoint

RESULTS = "# Written by `hybridlm card`.\n- dataset: {id: a/b, task_id: c}\n  value: 1\n"


@pytest.fixture
def source(checkpoint, tmp_path, monkeypatch):
    """A checkpoint `source` in the working folder with a full card, a picture and results."""
    monkeypatch.chdir(tmp_path)
    folder = Path(shutil.copytree(checkpoint, "source", ignore=shutil.ignore_patterns("training_state", "evaluation")))
    write_card(folder, options=CardOptions(license="mit"), log=print)
    text = (folder / "README.md").read_text().replace("## Evaluation", f"![c]({card.PICTURE})\n\n## Evaluation")
    (folder / "README.md").write_text(card.sealed(text))
    (folder / card.PICTURE).write_bytes(b"a picture")
    (folder / ".eval_results").mkdir()
    (folder / card.BENCHMARKS).write_text(RESULTS)
    return folder


def export(source, out, **options):
    said = []
    export_checkpoint(source, out, log=said.append, **options)
    return (Path(out) / "README.md").read_text(), said


def rest(text):
    return text.split(card.CLOSING)[1]


def test_an_export_takes_it_along_and_says_how_to_load_the_export(source):
    before = (source / "README.md").read_text()
    text, _ = export(source, "mine")
    assert rest(text) == rest(before)
    assert card.is_full_card(text)
    found = ModelCard(text)
    assert (found.data.license, found.data.tags) == ("mit", ["hybridlm", "rglru", "bmru"])
    assert text.count("\n# ") == 2  # the title, and the comment of the example
    assert "\n# mine\n" in text
    example = {}
    exec(text.split("```python\n")[1].split("```")[0], example)
    assert isinstance(example["model"], HybridLMForCausalLM)
    assert 'from_pretrained("mine", trust_remote_code=True)' in text
    assert "LICENSE-CODE" in text
    assert Path("mine", card.PICTURE).read_bytes() == b"a picture"
    assert Path("mine", card.BENCHMARKS).read_text() == RESULTS
    assert (source / "README.md").read_text() == before


def test_an_export_of_the_export_and_over_it(source):
    first, _ = export(source, "mine")
    again, said = export(source, "mine", overwrite=True)
    assert again == first
    assert not any("stays" in line for line in said)
    twice, _ = export("mine", "other")
    assert twice == first.replace('"mine"', '"other"').replace("# mine", "# other").replace(
        card._SEALED.search(first)[1], card._SEALED.search(twice)[1]
    )
    assert Path("other", card.PICTURE).is_file()
    Path("mine", ".eval_results", "theirs.yaml").write_text("")
    with pytest.raises(UserError, match=r"is no export \(.eval_results/theirs.yaml\), and would be lost"):
        export(source, "mine", overwrite=True)


def test_a_changed_one_travels_as_it_is_and_stays_where_it_is(source):
    text, _ = export(source, "mine")
    Path("mine/README.md").write_text(text + "My words.\n")
    Path("mine", card.PICTURE).write_bytes(b"my picture")
    kept, said = export(source, "mine", overwrite=True)
    assert kept == text + "My words.\n"
    assert "README.md in mine is your own, and stays" in said
    assert Path("mine", card.PICTURE).read_bytes() == b"my picture"
    (source / "README.md").write_text((source / "README.md").read_text() + "Theirs.\n")
    text, _ = export(source, "new")
    assert text == (source / "README.md").read_text()
    assert Path("new", card.PICTURE).read_bytes() == b"a picture"


def test_without_a_picture_in_the_card_none_travels(source):
    (source / "README.md").write_text("My model.")
    export(source, "mine")
    assert not Path("mine", card.PICTURE).exists()


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A fake repository: `hub.files`, and what was not uploaded in `hub.ignored`."""
    hub = SimpleNamespace(files={}, ignored=None, api=create_autospec(HfApi, instance=True))

    def upload(*, folder_path, ignore_patterns, **_):
        hub.ignored = ignore_patterns
        for path in Path(folder_path).rglob("*"):
            name = path.relative_to(folder_path).as_posix()
            if path.is_file() and name not in (ignore_patterns or []):
                hub.files[name] = path.read_bytes()
        return SimpleNamespace(commit_url="https://hub/commit/1")

    def download(_, name):
        (tmp_path / "downloaded").write_bytes(hub.files[name])
        return str(tmp_path / "downloaded")

    hub.api.list_repo_files.side_effect = lambda *_, **__: sorted(hub.files)
    hub.api.upload_folder.side_effect = upload
    hub.api.hf_hub_download.side_effect = download
    monkeypatch.setattr(push_module, "HfApi", lambda **_: hub.api)
    return hub


def push(source):
    push_checkpoint(source, "owner/great", log=lambda _: None)


def test_an_upload_takes_it_along_and_replaces_what_nobody_wrote(source, hub):
    push(source)
    text = hub.files["README.md"].decode()
    assert 'AutoModelForCausalLM.from_pretrained("owner/great", trust_remote_code=True)' in text
    assert card.is_full_card(text)
    assert hub.files[card.PICTURE] == b"a picture"
    assert hub.files[card.BENCHMARKS].decode() == RESULTS
    write_card(source, options=CardOptions(license="apache-2.0"), log=print)
    push(source)
    assert b"license: apache-2.0" in hub.files["README.md"]
    hub.files["README.md"] += b"Words.\n"
    before = hub.files["README.md"]
    push(source)
    assert hub.files["README.md"] == before
    assert hub.ignored == ["README.md", card.PICTURE]
    (source / "README.md").write_text("My model.")
    push(source)
    assert hub.files["README.md"] == b"My model."
