"""A card of `hybridlm card` in exports and uploads: all of it, with the way to load the new place."""

import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard

from hybridlm import HybridLMForCausalLM
from hybridlm.errors import UserError
from hybridlm.evaluation.weights import weights_digest
from hybridlm.release import card
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


def test_the_name_that_it_was_made_with_is_kept(source):
    write_card(source, options=CardOptions(name="me/great"), log=print)
    text, _ = export(source, "mine")
    assert "\n# great\n" in text
    assert 'from_pretrained("me/great", trust_remote_code=True)' in text
    twice, _ = export("mine", "other")
    assert twice == text


def test_an_export_of_the_export_and_over_it(source):
    first, _ = export(source, "mine")
    again, said = export(source, "mine", overwrite=True)
    assert again == first
    assert not any("stays" in line for line in said)
    twice, _ = export("mine", "other")
    assert twice == card.sealed(first.replace('"mine"', '"other"').replace("# mine", "# other"))
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
    assert "README.md in mine was written or changed by somebody, and stays; remove it there to have another" in said
    assert Path("mine", card.PICTURE).read_bytes() == b"my picture"
    (source / "README.md").write_text((source / "README.md").read_text() + "Theirs.\n")
    text, said = export(source, "new")
    assert text == (source / "README.md").read_text()
    assert any("README.md of source was written or changed by somebody: it goes along" in line for line in said)
    assert Path("new", card.PICTURE).read_bytes() == b"a picture"


def test_without_a_picture_in_the_card_none_travels(source):
    (source / "README.md").write_text("My model.")
    export(source, "mine")
    assert not Path("mine", card.PICTURE).exists()


def push(source):
    push_checkpoint(source, "owner/great", log=lambda _: None)


def test_an_upload_takes_it_along_and_replaces_what_nobody_wrote(source, hub):
    push(source)
    repo = hub.repositories["owner/great"]
    text = repo.read("README.md").decode()
    assert 'AutoModelForCausalLM.from_pretrained("owner/great", trust_remote_code=True)' in text
    assert card.is_full_card(text)
    assert repo.read(card.PICTURE) == b"a picture"
    assert repo.read(card.BENCHMARKS).decode() == RESULTS
    changed = (source / "README.md").read_text().replace("license: mit", "license: apache-2.0")
    (source / "README.md").write_text(card.sealed(changed))
    push(source)
    assert b"license: apache-2.0" in repo.read("README.md")
    repo.edit("README.md", repo.read("README.md").decode() + "Words.\n")
    before = repo.read("README.md")
    (source / card.PICTURE).write_bytes(b"another picture")
    push(source)
    assert repo.read("README.md") == before
    assert repo.read(card.PICTURE) == b"a picture"
    (source / "README.md").write_text("My model.")
    push(source)
    assert repo.read("README.md") == b"My model."


def test_an_upload_without_one_removes_what_belonged_to_the_last(source, hub):
    push(source)
    for name in ("README.md", card.BENCHMARKS):
        (source / name).unlink()
    push(source)
    repo = hub.repositories["owner/great"]
    assert not {card.PICTURE, card.BENCHMARKS} & set(repo.files())
    assert card.sealed_by(repo.read("README.md").decode()) == "export"


def test_a_card_of_what_lies_on_the_hub(source, hub):
    """Its title is no commit's, and the code lies there, though it is not downloaded."""
    push(source)
    write_card("owner/great", "theirs.md", log=print)
    text = Path("theirs.md").read_text()
    assert "\n# great\n" in text
    assert 'AutoModelForCausalLM.from_pretrained("owner/great", trust_remote_code=True)' in text


def test_a_card_of_other_weights_does_not_travel(source):
    model = HybridLMForCausalLM.from_pretrained(source)
    with torch.no_grad():
        model.get_input_embeddings().weight[0, 0] += 1
    model.save_pretrained(source, max_shard_size="20KB")  # an export has one file
    with pytest.raises(UserError, match=r"checkpoint source: README.md was written .* for other weights"):
        export(source, "other")
    assert not Path("other").exists()
    write_card(source, log=print)
    text, _ = export(source, "other")
    assert card.marked(text) == weights_digest("other") != weights_digest(source)
    again, _ = export("other", "third")
    assert card.marked(again) == weights_digest("third")


def test_a_card_that_was_sealed_and_cannot_be_read(source):
    text = card.sealed((source / "README.md").read_text().replace("tags:", "tags: ["))
    (source / "README.md").write_text(text)
    assert card.is_full_card(text)
    with pytest.raises(UserError, match=r"README.md: its metadata cannot be read"):
        export(source, "mine")
    assert not Path("mine").exists()
