"""The model card of a checkpoint, from what its run left: README.md with the Hub's metadata, a picture, benchmarks.

    CHECKPOINT/config.json, weights            architecture, parameters
    CHECKPOINT/training_state/state.json       steps, tokens, time, fingerprint of the data, settings
    RUN/metrics.jsonl                          curves, losses, validation, up to the checkpoint's step
    RUN/config.yaml                            recipe, sources of the data and their licences
    RUN/sessions.jsonl                         commands, machines, versions, commits
    the data folder's manifest.json            documents, tokens and bytes of each source
    CHECKPOINT/evaluation/*.json               what `hybridlm evaluate` measured

Every number is from there. What is not there is left out or said to be missing; a checkpoint without a run has a
shorter card. The text around the numbers is template.md.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from huggingface_hub import EvalResultEntry

from hybridlm.errors import UserError
from hybridlm.evaluation.places import check_out
from hybridlm.evaluation.plots import NoMatplotlibError
from hybridlm.evaluation.run_charts import loss_and_validation
from hybridlm.files import replace_file, replace_pieces
from hybridlm.release import card
from hybridlm.release.export import Source, open_source
from hybridlm.release.model_card import benchmarks
from hybridlm.release.model_card.contents import NO_RUN, OTHER_WEIGHTS, CardOptions, Contents


def write_card(
    checkpoint: str | Path,
    out: str | Path | None = None,
    *,
    options: CardOptions | None = None,
    overwrite: bool = False,
    log: Callable[[str], None] = print,
) -> Path:
    """Writes the card, and what goes beside it; returns its path.

    out None: README.md in the checkpoint's folder. overwrite: also a card that somebody wrote or changed. Raises
    UserError: no checkpoint, damaged files of its run, a card in the way, options that do not fit.
    """
    options = options or CardOptions()
    _check(options)
    source = open_source(checkpoint)
    path = _place(source, out)
    picture = path.with_name(f"{path.stem}_curves.png")
    before = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    if not overwrite:
        _check_free(path, picture, before)
        if options.benchmarks:
            _check_own(path.parent / card.BENCHMARKS)
    made = Contents(source, options)
    if not overwrite:
        _check_richer(made, path, before)
    for line in made.notes:
        log(line)
    results = benchmarks.entries(options.benchmarks, made.measured)
    try:
        drawn = _draw(made, picture, log)
        text = made.render(picture.name if drawn else None)
        if results or out is None:  # of another card beside FILE.md, they are none of this one's
            _write_benchmarks(path.parent / card.BENCHMARKS, results)
        replace_file(path, text)
        if not drawn and picture.name in before:
            picture.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(
            f"card {path}: it cannot be written ({error.strerror}). Give another place with --out."
        ) from None
    if line := benchmarks.candidates(made.measured, options.benchmarks):
        log(line)
    return path


def _check(options: CardOptions) -> None:
    if options.name is not None and (not card.title_of(options.name).strip() or not options.name.isprintable()):
        raise UserError(f"--name {options.name!r}: must be OWNER/MODEL, or the path of a folder, e.g. me/my-model.")
    if options.license is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", options.license):
        raise UserError(
            f"--license {options.license}: must be one of the Hub's names, small letters without blanks, e.g. "
            "apache-2.0, mit, cc-by-sa-4.0 or other."
        )
    for word in options.language:
        if not re.fullmatch(r"[a-z]{2,3}|code|multilingual", word):
            raise UserError(f"--language {word}: must be an ISO 639 code of two or three letters, e.g. en or en,fr.")


def _place(source: Source, out: str | Path | None) -> Path:
    if out is not None:
        return check_out(out)
    if source.on_hub:
        raise UserError(
            f"checkpoint {source.name}: it is no local folder, so a card has no place in it. Give --out FILE.md."
        )
    return source.folder / "README.md"


def _check_free(path: Path, picture: Path, before: str) -> None:
    """Raises UserError where a card stands that somebody wrote or changed, or another's picture beside it."""
    if before and card.is_own_card(before):
        raise UserError(f"{path}: somebody wrote or changed it. Replace it with --overwrite, or give --out FILE.md.")
    if picture.exists() and picture.name not in before:
        raise UserError(f"{picture}: it is in the way. Replace it with --overwrite, or give --out FILE.md.")


def _check_own(results: Path) -> None:
    """Raises UserError where results of benchmarks stand that `hybridlm card` did not write."""
    if results.is_file() and not _is_ours(results):
        raise UserError(f"{results}: somebody wrote it. Replace it with --overwrite, or give --out FILE.md elsewhere.")


def _is_ours(results: Path) -> bool:
    return results.read_text(encoding="utf-8", errors="replace").startswith(card.WRITTEN)


def _check_richer(made: Contents, path: Path, before: str) -> None:
    """An export has the card, and not the run that it was made from: one made here would say less. Raises UserError."""
    told = NO_RUN not in before and OTHER_WEIGHTS not in before
    if made.training is None and made.no_run == NO_RUN and card.is_full_card(before) and told:
        raise UserError(
            f"{path}: it says how the model was trained, which is not known from the files here. Make the card in the "
            "folder of the run, and export that; or replace it with --overwrite."
        )


def _draw(made: Contents, picture: Path, log: Callable[[str], None]) -> bool:
    """Whether there are curves, and what draws them."""
    if made.training is None or made.training.record is None:
        return False
    try:
        png = loss_and_validation(made.training.record)
    except NoMatplotlibError as error:
        log(f"No picture: {error}")
        return False
    if png is not None:
        replace_pieces(picture, [png])
    return png is not None


def _write_benchmarks(path: Path, results: Sequence[EvalResultEntry]) -> None:
    if results:
        path.parent.mkdir(exist_ok=True)
        replace_file(path, benchmarks.text(list(results)))
    elif path.is_file() and _is_ours(path):
        path.unlink()  # of an earlier card
