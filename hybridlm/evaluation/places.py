"""Where results go. A place that will not do is refused before the work, not behind it, by one rule for all commands:
the folder of a file must exist."""

from __future__ import annotations

from pathlib import Path

from hybridlm.errors import UserError
from hybridlm.files import check_above, expanded, try_file, try_folder


def check_out(out: str | Path, option: str = "--out") -> Path:
    """The path that --out, or another option, names. Raises UserError where no file can be written there; one that
    stands there is replaced."""
    path = expanded(out)
    if "\0" in str(path):
        raise UserError(f"{option} {str(path)!r}: the character NUL cannot stand in a name. Give another one.")
    try:
        check_above(path.parent)
        if not path.parent.is_dir():
            raise UserError(
                f"{option} {path}: the folder {path.parent} does not exist. Make it, or give another place."
            )
        if path.is_dir():
            raise UserError(f"{option} {path}: that is a folder. Give a file in it, e.g. {path / 'result'}.")
        if path.exists() and not path.is_file():  # what is written replaces it: a root's /dev/null would be gone
            raise UserError(f"{option} {path}: a device, pipe or socket stands there. Give a file.")
        try_file(path)
    except OSError as error:
        raise UserError(f"{option} {path}: cannot be written ({error.strerror}). Give another place.") from None
    return path


def check_beside(checkpoint: str | Path, what: str = "numbers", suffix: str = ".json") -> None:
    """Raises UserError where results (`what`, files of a suffix) cannot be kept in the folder of a checkpoint, which is
    where they go without --out."""
    folder = Path(checkpoint)
    if not folder.is_dir():
        raise UserError(
            f"checkpoint {folder}: it is no local folder, so the {what} have no place beside it. Give --out "
            f"FILE{suffix}."
        )
    try:
        try_folder(folder / "evaluation")
    except OSError as error:
        raise UserError(
            f"checkpoint {folder}: the {what} cannot be written beside it ({error.strerror}). Give --out FILE{suffix}."
        ) from None
