"""Files that are damaged: a configuration, token shards, a state, a recipe, a study; and pattern strings.

A target is a strategy for its inputs, and what tries one of them: "works", or "refused" in the one way in which that
part of the package refuses; anything else that it raises is a fault.
"""

import json
import shutil
import struct
from collections.abc import Callable, Iterator
from contextlib import chdir, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import yaml
from damage import ODD_TEXTS, VALUES, changed, damaged, json_files
from hypothesis import strategies as st
from workshop import RECIPE, STUDY

from hybridlm import HybridLMConfig
from hybridlm.data import TokenShards
from hybridlm.errors import UserError
from hybridlm.evaluation.comparison.study import read_study
from hybridlm.evaluation.generate import generate_text
from hybridlm.evaluation.info import describe
from hybridlm.evaluation.loading import load_checkpoint
from hybridlm.evaluation.reading import load_state
from hybridlm.evaluation.run_record import read_runs
from hybridlm.evaluation.run_report import render as render_report
from hybridlm.model.mixers_hybridlm import MIXERS, STANDALONE
from hybridlm.model.pattern_hybridlm import parse, render
from hybridlm.model.snapshot_hybridlm import take, tokens_seen
from hybridlm.model.statefile_hybridlm import _SEAL, _seal
from hybridlm.release.model_card import contents as contents_module
from hybridlm.release.model_card import write as write_module
from hybridlm.release.model_card.write import write_card
from hybridlm.training.config import config_yaml, load_config, yaml_value


class Target(NamedTuple):
    inputs: st.SearchStrategy[Any]
    attempt: Callable[[Any], str]
    """Returns "works" or "refused"."""
    share: float
    """Of all inputs."""


class Patterns:
    """Pattern strings: what is parsed comes back from what is rendered."""

    words = st.sampled_from([*sorted(MIXERS), "lur", "(", ")", "*", "+", "2", "0", "99999", "9" * 5000, "x", "-", "²"])
    inputs = (
        st.lists(words, max_size=12).map(" ".join)
        | st.lists(words, max_size=12).map("".join)
        | st.text(alphabet="lrubmg ()*+_0123456789\n\t", max_size=40)
        | st.integers(1, 60).map(lambda depth: "(" * depth + "lru" + ")*2" * depth)
        | st.text(max_size=20)
        | VALUES
    )

    def attempt(self, pattern: Any) -> str:
        try:
            layers = parse(pattern, MIXERS, STANDALONE)
        except ValueError as error:
            _says(error, "pattern")
            return "refused"
        assert layers
        if len(layers) < 200:
            assert parse(render(layers), MIXERS, STANDALONE) == layers
        return "works"


class Configs:
    """config.json of a checkpoint: `from_pretrained`, and what `hybridlm info` does with it."""

    def __init__(self, made: Path, place: Path):
        self.place = place / "config"
        self.place.mkdir()
        base = json.loads((made / "model" / "config.json").read_text(encoding="utf-8"))
        more = base | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}, "id2label": {"0": "a"}}
        self.inputs = json_files(more) | changed(base | {"pattern": "attention mamba2"}).map(
            lambda values: json.dumps(values).encode()
        )

    def attempt(self, data: bytes) -> str:
        (self.place / "config.json").write_bytes(data)
        try:
            HybridLMConfig.from_pretrained(self.place)
        except (ValueError, OSError) as error:
            _says(error, "HybridLMConfig", "pattern", str(self.place))
        try:
            describe(self.place)
        except UserError as error:
            _says(error, str(self.place))
            return "refused"
        return "works"


class Checkpoints:
    """A checkpoint of which another file than config.json is damaged, or gone."""

    def __init__(self, made: Path, place: Path):
        self.place = place / "checkpoint"
        shutil.copytree(made / "model", self.place)
        content = {path.name: path.read_bytes() for path in _files(made / "model") if path.name != "config.json"}
        self.content = content
        names = st.sampled_from(sorted(content))
        said = st.sampled_from(sorted(name for name in content if name.endswith(".json"))).flatmap(
            lambda name: st.tuples(st.just(name), json_files(json.loads(content[name])))
        )
        index = {"metadata": {"total_size": 1}, "weight_map": {"model.norm.weight": "model.safetensors", "x": "../x"}}
        self.inputs = (
            names.flatmap(lambda name: st.tuples(st.just(name), damaged(content[name])))
            | said
            | st.tuples(names, st.none())
            | st.tuples(st.just("model.safetensors.index.json"), json_files(index))
        )

    def attempt(self, case: tuple[str, bytes | None]) -> str:
        name, data = case
        if data is None:
            (self.place / name).unlink()
        else:
            (self.place / name).write_bytes(data)
        try:
            if name.endswith(".index.json"):
                (self.place / "model.safetensors").unlink()
            model, tokenizer = load_checkpoint(self.place)
            if name == "generation_config.json":
                generate_text(model, tokenizer, "a", max_new_tokens=1)
        except UserError as error:
            _says(error, str(self.place), "generation_config.json")
            return "refused"
        finally:
            (self.place / name).unlink(missing_ok=True)
            for file, whole in self.content.items():
                (self.place / file).write_bytes(whole)
        return "works"


class Shards:
    """A data folder of which one file is damaged. With checksums it is refused, or what is read is what was written;
    without them, tokens may be others, and nothing worse."""

    def __init__(self, made: Path, place: Path):
        self.whole, self.place = made / "data", place / "shards"
        self.place.mkdir()
        self.content = {path.relative_to(self.whole): path.read_bytes() for path in _files(self.whole)}
        self.lay_out()
        self.good = self.read(verify=True)
        manifest = json.loads(self.content[Path("manifest.json")])
        names = st.sampled_from(sorted(self.content))
        bytes_of = names.flatmap(lambda name: st.tuples(st.just(name), damaged(self.content[name])))
        said = st.tuples(st.just(Path("manifest.json")), json_files(manifest))
        self.inputs = st.tuples(bytes_of | said | st.tuples(names, st.none()), st.booleans())

    def lay_out(self) -> None:
        for name, data in self.content.items():
            (self.place / name).parent.mkdir(exist_ok=True)
            (self.place / name).write_bytes(data)

    def read(self, verify: bool) -> list[Any]:
        found: list[Any] = []
        for split in ("train", "validation"):
            shards = TokenShards(self.place, split)
            if verify:
                shards.verify()
            assert (shards.lengths >= 0).all()
            found += [shards.document(i).tobytes() for i in range(shards.n_documents)]
            found += [shards.document_bytes(i) for i in range(shards.n_documents)]
            found.append(shards.bytes_before(shards.n_documents))
        found.append(sorted(shards.tokenizer.get_vocab().items()))
        return found

    def attempt(self, case: tuple[tuple[Path, bytes | None], bool]) -> str:
        (name, data), verify = case
        if data is None:
            (self.place / name).unlink()
        else:
            (self.place / name).write_bytes(data)
        try:
            found = self.read(verify)
        except UserError as error:
            _says(error, str(self.place))
            return "refused"
        finally:
            (self.place / name).write_bytes(self.content[name])
        if verify and name.parent == Path() and name.suffix != ".json":
            assert found == self.good, f"{name} was damaged, and was read all the same"
        return "works"


class States:
    """The state file of a conversation: bytes changed, and headers that say other things under a right seal."""

    def __init__(self, made: Path, place: Path):
        self.model, self.tokenizer = load_checkpoint(made / "model")
        self.path, self.data = place / "damaged.state", (made / "book.state").read_bytes()
        self.good = self.tensors(made / "book.state")
        length = struct.unpack("<Q", self.data[:8])[0]
        self.header, self.body = json.loads(self.data[8 : 8 + length]), self.data[8 + length :]
        said = {key: json.loads(text) for key, text in self.header["__metadata__"].items() if key != _SEAL}
        sealed = changed(said).map(self.sealed)
        texts = changed(self.header).map(self.packed)
        self.inputs = st.tuples(damaged(self.data), st.just(True)) | st.tuples(sealed | texts, st.just(False))

    def packed(self, header: dict[str, Any]) -> bytes:
        text = json.dumps(header).encode()
        return struct.pack("<Q", len(text)) + text + self.body

    def sealed(self, said: dict[str, Any]) -> bytes:
        """A header that whoever wrote it meant."""
        metadata = {key.replace("\0", "0"): json.dumps(value) for key, value in said.items()}
        metadata[_SEAL] = _seal(metadata)
        return self.packed(self.header | {"__metadata__": metadata})

    def tensors(self, path: Path) -> list[Any]:
        talk = load_state(self.model, self.tokenizer, path)
        held = [(name, one.numpy().tobytes()) for layer in take(talk.cache) for name, one in layer.tensors.items()]
        return [held, talk.pending_ids.tolist(), tokens_seen(talk.cache)]

    def attempt(self, case: tuple[bytes, bool]) -> str:
        data, same = case
        self.path.write_bytes(data)
        try:
            found = self.tensors(self.path)
        except UserError as error:
            _says(error, str(self.path))
            return "refused"
        assert found == self.good or not same, "a damaged state was taken for a whole one"
        return "works"


class Runs:
    """What a run left, of which one file is damaged: its card, and its report without the pictures."""

    def __init__(self, made: Path, place: Path):
        self.place, self.facts = place / "work", describe(made / "model")
        shutil.copytree(made, self.place)
        lines = ["trained/metrics.jsonl", "trained/sessions.jsonl"]
        said = ["trained/final/training_state/state.json", "trained/final/training_state/checksums.json"]
        said += ["trained/final/evaluation/short-8.json", "data/manifest.json"]
        self.content = {name: (made / name).read_bytes() for name in (*lines, *said, "trained/config.yaml")}
        names = st.sampled_from(sorted(self.content))
        recipe = yaml.safe_load(self.content["trained/config.yaml"])
        self.inputs = (
            names.flatmap(lambda name: st.tuples(st.just(name), damaged(self.content[name])))
            | st.sampled_from(said).flatmap(
                lambda name: st.tuples(st.just(name), json_files(json.loads(self.content[name])))
            )
            | st.sampled_from(lines).flatmap(lambda name: st.tuples(st.just(name), self.rows(name)))
            | st.tuples(st.just("trained/config.yaml"), _yaml(recipe, RECIPE) | _tags().map(str.encode))
            | st.tuples(names, st.none())
        )

    def rows(self, name: str) -> st.SearchStrategy[bytes]:
        """Lines of which one says something else."""
        rows = self.content[name].splitlines()
        return st.integers(0, len(rows) - 1).flatmap(
            lambda at: json_files(json.loads(rows[at])).map(
                lambda row: b"\n".join([*rows[:at], row, *rows[at + 1 :], b""])
            )
        )

    @contextmanager
    def whole(self) -> Iterator[None]:
        """What takes longest, and is of files that are not damaged here: the model's facts, and the picture."""
        with (
            mock.patch.object(contents_module, "describe", return_value=self.facts),
            mock.patch.object(write_module, "loss_and_validation", return_value=None),
        ):
            yield

    def attempt(self, case: tuple[str, bytes | None]) -> str:
        name, data = case
        path = self.place / name
        if data is None:
            path.unlink()
        else:
            path.write_bytes(data)
        try:
            with chdir(self.place), self.whole():
                write_card("trained/final", "card.md", overwrite=True, log=lambda _: None)
                text = Path("card.md").read_text(encoding="utf-8")
                assert "| nan" not in text, "a number that is none"
                render_report(read_runs(["trained"]), [])
        except UserError as error:
            _says(error, "trained", "data")
            return "refused"
        finally:
            path.write_bytes(self.content[name])
        return "works"


class Recipes:
    """YAML of recipes and studies, and overrides. What is read can be written and read again."""

    def __init__(self, made: Path, place: Path):
        self.place = place
        (place / "recipe.yaml").write_bytes((made / "recipe.yaml").read_bytes())
        recipe, study = yaml_value(RECIPE), yaml_value(STUDY)
        preparing = {"prepare": {"sources": [{"path": "book.txt"}], "output": "out", "vocab_size": 270}}
        other = recipe | {"data": preparing | {"sequence_length": 16}}
        tags = _tags()
        loose = st.sampled_from(["data", "model", "training", "run"]).flatmap(
            lambda name: tags.map(lambda text: f"{name}: {text}")
        )
        self.inputs = st.tuples(
            _yaml(recipe, RECIPE) | _yaml(other, RECIPE) | tags.map(str.encode) | loose.map(str.encode),
            st.just([]) | st.lists(_overrides(), max_size=2),
        ) | st.tuples(_yaml(study, STUDY), st.none())

    def attempt(self, case: tuple[bytes, list[str] | None]) -> str:
        data, overrides = case
        path = self.place / "other.yaml"
        path.write_bytes(data)
        try:
            if overrides is None:
                read_study(path)
                return "works"
            config = load_config(path, overrides)
        except UserError as error:
            _says(error, str(self.place))
            return "refused"
        finally:
            assert not Path("harm").exists()
        path.write_text(config_yaml(config), encoding="utf-8")
        assert load_config(path) == config
        return "works"


def _tags() -> st.SearchStrategy[str]:
    """YAML that says more than plain values, or says them in odd ways."""
    return st.sampled_from(
        [
            *("!!python/object/apply:os.mkdir [harm]", "&a [*a]", "!!binary x", "{[1]: 2}", "? {a: 1}\n: 2"),
            *("<<: {a: 1}", "{<<: 3}", "!!set {a}", "!!omap [a: 1]", "!!timestamp 99-99", "!!float x", "!!int ''"),
            *("&a {b: *a}", "? !!timestamp 2001-01-01\n: 1"),
            _laughs(),
        ]
    )


def _laughs() -> str:
    """Nine levels of nine aliases: 387 million entries, in 500 characters."""
    levels = [f"&{b} [{', '.join(9 * [f'*{a}'])}]" for a, b in pairwise("abcdefghij")]
    return f"[&a [x], {', '.join(levels)}]"


def _yaml(values: dict[str, Any], text: str) -> st.SearchStrategy[bytes]:
    plain = changed(values).map(lambda found: yaml.safe_dump(found, allow_unicode=True).encode("utf-8", "replace"))
    return plain | plain | damaged(text.encode()) | st.just(text.encode())


def _overrides() -> st.SearchStrategy[str]:
    names = ["training.steps", "model.pattern", "data.folder", "optimizer.lr", "run.name", "a.b", "data.prepare", ""]
    names += ["data.prepare.sources.0.path", "model", "training.steps.x", ".", "training..steps", "run"]
    values = st.sampled_from([*ODD_TEXTS, "1", "2e-3", "[]", "{a: 1}", "&a [*a]", "!!python/name:os.system"])
    return st.builds("{}={}".format, st.sampled_from(names), values) | st.sampled_from(ODD_TEXTS)


def _says(error: Exception, *words: str) -> None:
    """A refusal names what it is about, and can be read."""
    said = str(error)
    assert any(word in said for word in words), f"a message without any of {words}: {said[:300]}"
    assert len(said) < 40_000, f"a message of {len(said)} characters: {said[:300]}"


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())
