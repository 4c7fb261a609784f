"""A run that has begun goes on with its data folder: no source is read again, and the folder is not replaced."""

import shutil
from pathlib import Path

import pytest

from hybridlm.data.prepare import prepare
from hybridlm.errors import UserError
from hybridlm.training import known_data
from hybridlm.training.loop import pretrain
from hybridlm.training.metrics import read_rows

RUN = ("checkpoint.every=2", "training.steps=4", "data.folder=null")


@pytest.fixture
def describe(recipe, tmp_path):
    """`describe("run.name=x", vocab_size=270)`: a recipe that prepares its data from text.txt."""

    def make(*overrides: str, vocab_size: int = 280, **entries: object):
        (tmp_path / "text.txt").exists() or (tmp_path / "text.txt").write_text("the sea was calm and grey. " * 300)
        more = "".join(f", {name}: {value}" for name, value in entries.items())
        section = f"sources: [{{path: {tmp_path}/text.txt}}], output: {tmp_path}/data, vocab_size: {vocab_size}"
        return recipe(*RUN, f"data.prepare={{{section}, validation: {{share: 0}}{more}}}", *overrides)

    return make


def counted(monkeypatch) -> list[str]:
    calls = []

    def spy(section, log=print, **how):
        calls.append(section.output)
        return prepare(section, log, **how)

    monkeypatch.setattr(known_data, "prepare", spy)
    return calls


def test_a_resumed_and_a_finished_run_read_no_source(describe, interrupted, tmp_path, monkeypatch, capsys):
    calls = counted(monkeypatch)
    interrupted(describe(), 2)
    assert len(calls) == 1
    (tmp_path / "text.txt").write_text("Texts that came later. " * 400)
    result = pretrain(describe(workers=2, overwrite="true"))  # how it would be made, not of what
    assert "is the one that this run began with; its sources are not read again" in capsys.readouterr().out
    assert [row["step"] for row in read_rows(result.metrics)] == [1, 2, 3, 4]
    (tmp_path / "text.txt").unlink()
    pretrain(describe())
    pretrain(describe("data.prepare.sources=[{path: %s, license: CC0-1.0}]" % (tmp_path / "text.txt")))
    assert len(calls) == 1


def test_overwrite_does_not_replace_the_data_of_a_run_that_has_begun(describe, interrupted, tmp_path):
    interrupted(describe(), 2)
    before = (tmp_path / "data" / "manifest.json").read_bytes()
    with pytest.raises(UserError, match=r"(?s)tokenizer differ.*began with it. Give the old data.prepare back"):
        pretrain(describe(vocab_size=270, overwrite="true"))
    assert (tmp_path / "data" / "manifest.json").read_bytes() == before
    assert pretrain(describe()).checkpoint.is_dir()
    with pytest.raises(UserError, match=r"choose another data.prepare.output"):
        pretrain(describe(vocab_size=270, overwrite="true"))  # a finished run, too
    assert (tmp_path / "data" / "manifest.json").read_bytes() == before
    other = pretrain(describe("run.name=other", vocab_size=270, overwrite="true"))  # a run of its own may
    assert other.checkpoint.is_dir()
    assert (tmp_path / "data" / "manifest.json").read_bytes() != before


def test_a_data_folder_that_is_gone_is_made_again(describe, interrupted, tmp_path, monkeypatch):
    config = describe()
    interrupted(config, 2)
    calls = counted(monkeypatch)
    shutil.rmtree(tmp_path / "data")
    assert pretrain(config).checkpoint.is_dir()
    assert len(calls) == 1
    (tmp_path / "runs" / "test" / "config.yaml").unlink()  # what the section was is not known: the sources are read
    pretrain(config)
    assert len(calls) == 2


def test_what_the_section_was_cannot_be_read(describe, interrupted):
    """A damaged config.yaml says nothing; the run goes on with the data folder that it has."""
    config = describe()
    interrupted(config, 2)
    sources = ("null", "[1]", "{a: b}", "[{weight: abc}]", "[{weight: [1]}]")
    for text in ("", "\0", "- 1", "data: []", *(f"data: {{prepare: {{sources: {each}}}}}" for each in sources)):
        (config.run.path / "config.yaml").write_text(text)
        folder = known_data.prepared_folder(config, lambda _: None)
        assert folder == Path(config.data.prepare.output)
    assert pretrain(config).checkpoint.is_dir()


def test_a_run_that_cannot_prepare_leaves_no_run_folder(recipe, tmp_path):
    section = f"data.prepare={{sources: [{{path: {tmp_path}/missing.txt}}], output: {tmp_path}/data}}"
    with pytest.raises(UserError, match="missing"):
        pretrain(recipe(*RUN, section))
    assert not (tmp_path / "runs" / "test").exists()
