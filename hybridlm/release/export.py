"""A checkpoint to a folder that loads with torch and transformers alone, through `trust_remote_code=True`.

    OUT/model.safetensors, config.json         weights in the dtype they have; configuration with all Auto classes
    OUT/generation_config.json                 where the model generates
    OUT/*.py, LICENSE-CODE, NOTICE-CODE        the code of the model, and its licence
    OUT/tokenizer.json, tokenizer_config.json  where the checkpoint has a tokenizer
    OUT/README.md                              the one in OUT if it is somebody's own, else the checkpoint's if it
                                               has one: its own as it is, that of `hybridlm card` with the way to load
                                               this folder; else how to load it
    OUT/README_curves.png, .eval_results       with a card of `hybridlm card`

Training state and evaluations stay behind. The checkpoint is loaded first, so that what is exported can be loaded. The
folder is written aside and renamed, so that it is whole or not there.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HTTPError  # pyright: ignore[reportPrivateImportUsage]
from safetensors import SafetensorError
from transformers import AutoTokenizer, PreTrainedModel

import hybridlm
from hybridlm.errors import UserError, did_you_mean
from hybridlm.evaluation.loading import load_weights, locate, quiet_transformers
from hybridlm.evaluation.weights import weights_digest
from hybridlm.files import expanded, remove_dead_writes, write_folder
from hybridlm.model.code_hybridlm import AUTO_MAP, names_our_classes
from hybridlm.release.card import (
    BENCHMARKS,
    PICTURE,
    card,
    card_top,
    full_card,
    has_own_card,
    loading_snippet,
    marked,
    moved,
    named,
    title_of,
)
from hybridlm.safe_loading import FAULTS, NO_CODE, brief, leads_outside

AUTO_CLASSES = {reference.rpartition(".")[2]: auto for auto, reference in AUTO_MAP.items() if auto != "AutoConfig"}
"""Class of ours, as config.json names it in `architectures` -> the Auto class that loads it."""

WEIGHTS_AND_CODE = re.compile(r"model(-\d+-of-\d+)?\.safetensors(\.index\.json)?|\w+_hybridlm\.py|cells_\w+\.py")
"""Files of an earlier export that a new one may no longer have."""

TOKENIZER = re.compile(
    r"tokenizer\.(json|model)|(tokenizer_config|special_tokens_map|added_tokens)\.json|vocab\.(json|txt)|merges\.txt"
    r"|chat_template\.(jinja|json)|additional_chat_templates(/.+\.jinja)?"
)
"""Files of a tokenizer: those of another one beside them would become a part of it."""
_REST_OF_AN_EXPORT = re.compile(r"README\.md|(generation_)?config\.json|(LICENSE|NOTICE)-CODE")
_FOLDERS = (".eval_results", "additional_chat_templates")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
_HUB_FILES = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", "README.md", PICTURE, BENCHMARKS]


@dataclass(frozen=True)
class Export:
    """What was exported: where it lies, what loads it, and what is in it."""

    location: str
    """The folder, or the name on the Hub."""
    architecture: str
    pattern: str
    parameters: int
    tokenizer: bool
    revision: str | None = None
    """The branch on the Hub; None: main, or a folder."""

    @property
    def auto_class(self) -> str:
        return AUTO_CLASSES[self.architecture]

    def snippet(self) -> str:
        """Python that loads it where hybridlm is not installed."""
        return loading_snippet(self.auto_class, self.location, self.tokenizer, revision=self.revision)


@dataclass(frozen=True)
class Source:
    """A checkpoint that can be exported: its name as it was given, the folder it lies in, and its class."""

    name: str
    folder: Path
    architecture: str

    @property
    def on_hub(self) -> bool:
        """Whether it was downloaded: weights, tokenizer and card alone, without the code."""
        return expanded(self.name).resolve() != self.folder.resolve()


def export_checkpoint(
    checkpoint: str | Path, out: str | Path, *, overwrite: bool = False, log: Callable[[str], None] = print
) -> Export:
    """Writes the folder `out` from `checkpoint`, a `from_pretrained` folder or a name OWNER/MODEL on the Hub.

    overwrite: replace an `out` that is an earlier export and nothing else; a README there that somebody wrote or
    changed stays. Raises UserError: no such checkpoint, one of another package, weights or tokenizer that do not fit,
    an `out` that is in the way.
    """
    source = open_source(checkpoint)
    target = _free_target(source, out, overwrite)
    found: list[Export] = []

    def fill(folder: Path) -> None:
        found.append(write_export(source, folder, str(out), named(full_card(source.folder) or "") or target.name))
        if has_own_card(target):
            log(f"README.md in {out} was written or changed by somebody, and stays; remove it there to have another")
            _copy(["README.md", PICTURE], target, folder)

    try:
        remove_dead_writes(target)
        log(f"Exporting {source.name} ({source.architecture}) to {out}")
        if not has_own_card(target):
            tell_of_own_card(source, log)
        write_folder(target, fill)
    except (OSError, SafetensorError) as error:
        raise UserError(f"OUT {out}: it cannot be written ({_reason(error)}). Give another folder.") from error
    return found[0]


def open_source(checkpoint: str | Path) -> Source:
    """Finds a checkpoint, downloading it where its name is one on the Hub, and reads what class it is of."""
    place = Path(locate(checkpoint))
    if not (place / "config.json").is_file():
        try:
            place = Path(snapshot_download(place.as_posix(), allow_patterns=_HUB_FILES))
        except (OSError, ValueError, HTTPError) as error:
            raise UserError(
                f"checkpoint {checkpoint}: it is no folder here, and cannot be had from the Hub ({_reason(error)})."
            ) from error
    config = _read_config(place)
    if config is None:
        raise UserError(f"checkpoint {checkpoint}: its config.json is missing or no JSON object. Copy it again.")
    if config.get("model_type") != "hybridlm":
        raise UserError(
            f"checkpoint {checkpoint}: its model_type is {config.get('model_type')!r}; `export` writes checkpoints of "
            "hybridlm only."
        )
    named: Any = config.get("architectures")
    architecture = str(named[0] if isinstance(named, list) and len(named) == 1 else named)
    if architecture not in AUTO_CLASSES:
        raise UserError(
            f"checkpoint {checkpoint}: its config.json says architectures={named!r}; must be one of "
            f"{', '.join(AUTO_CLASSES)}{did_you_mean(architecture, AUTO_CLASSES) or '.'} Save the model with "
            "save_pretrained, which writes it."
        )
    return Source(str(checkpoint), place, architecture)


def write_export(source: Source, folder: Path, location: str, name: str) -> Export:
    """Fills an empty `folder`. location: what is reported; name: what the README's example loads. Raises UserError
    where the checkpoint holds links to places outside of it: their contents would be published; and where its card is
    of other weights."""
    _check_links(source)
    _check_card(source)
    model = load_weights(source.name, str(source.folder), getattr(hybridlm, source.architecture))
    tokenizer = _load_tokenizer(source, model)
    model.carry_code()  # pyright: ignore[reportCallIssue]
    with quiet_transformers():
        model.save_pretrained(folder)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
    export = Export(location, source.architecture, model.config.pattern, model.num_parameters(), tokenizer is not None)
    _write_card(source, folder, export, name)
    return export


def tell_of_own_card(source: Source, log: Callable[[str], None]) -> None:
    """Says that a card which somebody wrote or changed goes along as it is, with the way to load that it tells of."""
    if has_own_card(source.folder):
        log(
            f"README.md of {source.name} was written or changed by somebody: it goes along as it is. See that what it "
            "says of loading the model holds for the new place."
        )


def _check_links(source: Source) -> None:
    """Weights may lie elsewhere: what is read from there is safetensors that fit the model. Other files might be
    anybody's, as they are in an archive from a stranger."""
    for path in _top(source.folder):
        if path.suffix != ".safetensors" and _of_an_export(path, source.folder) and leads_outside(path, source.folder):
            raise UserError(
                f"checkpoint {source.name}: {path.name} is a link to {path.resolve()}, outside of the folder, and what "
                "lies there would be published. Put a copy in its place if it belongs to the model."
            )


def _check_card(source: Source) -> None:
    full = full_card(source.folder)
    told = None if full is None else marked(full)
    if told is not None and told != weights_digest(source.folder):
        raise UserError(
            f"checkpoint {source.name}: README.md was written by `hybridlm card` for other weights than lie there now. "
            "Make it anew with `hybridlm card`, or remove it."
        )


def _write_card(source: Source, folder: Path, export: Export, name: str) -> None:
    """README.md, and what lies beside it."""
    full = full_card(source.folder)
    if has_own_card(source.folder):
        shutil.copyfile(source.folder / "README.md", folder / "README.md")
    else:
        facts = {
            "auto_class": export.auto_class,
            "architecture": export.architecture,
            "pattern": export.pattern,
            "parameters": export.parameters,
            "tokenizer": export.tokenizer,
        }
        text = (
            card(name, **facts)
            if full is None
            else moved(full, card_top(name, **facts), title_of(name), weights_digest(folder))
        )
        (folder / "README.md").write_text(text, encoding="utf-8")
    beside = [BENCHMARKS]
    if PICTURE in (folder / "README.md").read_text(encoding="utf-8", errors="replace"):
        beside.append(PICTURE)
    _copy(beside, source.folder, folder)


def _copy(names: list[str], source: Path, folder: Path) -> None:
    """Those files that are there."""
    for name in names:
        if (source / name).is_file():
            (folder / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(source / name, folder / name)


def has_tokenizer(folder: Path) -> bool:
    """Whether a checkpoint has a tokenizer."""
    return any((folder / name).is_file() for name in _TOKENIZER_FILES)


def _load_tokenizer(source: Source, model: PreTrainedModel) -> Any:
    """The checkpoint's tokenizer; None where it has none."""
    if not has_tokenizer(source.folder):
        return None
    try:
        with quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(str(source.folder), **NO_CODE)
    except FAULTS as error:
        raise UserError(
            f"checkpoint {source.name}: its tokenizer cannot be loaded ({brief(error)}). Put the tokenizer that the "
            "model was trained with into the folder, or remove its files to export the model alone."
        ) from error
    if len(tokenizer) > model.config.vocab_size:
        raise UserError(
            f"checkpoint {source.name}: the tokenizer has {len(tokenizer)} tokens, the model "
            f"{model.config.vocab_size}. Put the tokenizer that the model was trained with into the folder."
        )
    for trace in ("is_local", "local_files_only"):  # how it was loaded here, which transformers would save with it
        tokenizer.init_kwargs.pop(trace, None)
    return tokenizer


def _free_target(source: Source, out: str | Path, overwrite: bool) -> Path:
    """The absolute path of `out`, where it may be written. Raises UserError where it would destroy something."""
    target, origin = expanded(out).resolve(), source.folder.resolve()
    if target == origin or origin in target.parents:
        raise UserError(f"OUT {out}: it lies in the checkpoint {source.name} itself. Give a folder outside it.")
    if target in origin.parents:
        raise UserError(f"OUT {out}: the checkpoint {source.name} lies in it. Give a new folder.")
    if target.exists() and not target.is_dir():
        raise UserError(f"OUT {out}: that is a file. Give the folder to write.")
    if not target.is_dir() or not any(target.iterdir()):
        return target
    if not is_export(target):
        raise UserError(f"OUT {out}: the folder holds something that is no export. Give a new folder.")
    foreign = sorted(path.relative_to(target).as_posix() for path in _top(target) if not _of_an_export(path, target))
    if foreign:
        raise UserError(
            f"OUT {out}: the folder holds something that is no export ({', '.join(foreign[:5])}"
            f"{', ...' * (len(foreign) > 5)}), and would be lost. Move it elsewhere, or give a new folder."
        )
    if not overwrite:
        raise UserError(f"OUT {out}: an export lies there already. Replace it with --overwrite, or give a new folder.")
    return target


def _top(folder: Path) -> Iterator[Path]:
    """What lies in it, and in the folders of an export in place of these."""
    for path in folder.iterdir():
        yield from path.iterdir() if path.name in _FOLDERS and path.is_dir() else [path]


def _of_an_export(path: Path, folder: Path) -> bool:
    name = path.relative_to(folder).as_posix()
    kinds = (WEIGHTS_AND_CODE, TOKENIZER, _REST_OF_AN_EXPORT)
    return name in (PICTURE, BENCHMARKS) or any(kind.fullmatch(name) for kind in kinds)


def is_export(folder: Path) -> bool:
    """Whether an export of ours lies in the folder, whatever else does."""
    config = _read_config(folder)
    if config is None:
        return False
    auto_map = config.get("auto_map")
    return config.get("model_type") == "hybridlm" and isinstance(auto_map, dict) and names_our_classes(auto_map)


def _read_config(folder: Path) -> dict[str, Any] | None:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return config if isinstance(config, dict) else None


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:400] or type(error).__name__
