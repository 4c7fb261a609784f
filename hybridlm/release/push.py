"""An export, uploaded to the Hugging Face Hub in one commit."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    HTTPError,  # pyright: ignore[reportPrivateImportUsage]
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
)
from huggingface_hub.utils import validate_repo_id

from hybridlm.errors import UserError
from hybridlm.release.card import PICTURE, full_card, has_own_card, is_own_card
from hybridlm.release.export import WEIGHTS_AND_CODE, Export, Source, open_source, write_export


def push_checkpoint(
    checkpoint: str | Path,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | None = None,
    log: Callable[[str], None] = print,
) -> Export:
    """Uploads what `export_checkpoint` would write to OWNER/NAME on the Hub, which is made where there is none.

    Weights and code of an earlier push that the new one no longer has are removed in the same commit. A README that
    stands in the repository stays, unless the checkpoint has one of its own, or has a card of `hybridlm card` and the
    one in the repository was not written by a person. private: for a new repository (None: the
    owner's default). token: None takes the one of `hf auth login`, or HF_TOKEN.

    Raises UserError: what `export_checkpoint` refuses, no token, no right to write, the Hub out of reach. Nothing is
    made on the Hub before the export is whole.
    """
    _check_name(repo_id)
    source = open_source(checkpoint)
    api = HfApi(token=token)
    with _explained(repo_id):
        api.whoami()  # before the model is loaded
    with tempfile.TemporaryDirectory(prefix="hybridlm-") as temporary:
        folder = Path(temporary)
        log(f"Exporting {source.name} ({source.architecture})")
        export = write_export(source, folder, repo_id, repo_id)
        with _explained(repo_id):
            api.create_repo(repo_id, private=private, exist_ok=True)
            there = api.list_repo_files(repo_id)
            log(f"Uploading {_megabytes(folder)} to {repo_id}")
            commit = api.upload_folder(
                repo_id=repo_id,
                folder_path=folder,
                commit_message=f"Upload {export.architecture} with its code",
                ignore_patterns=["README.md", PICTURE] if _readme_stays(api, repo_id, there, source) else None,
                delete_patterns=[name for name in there if WEIGHTS_AND_CODE.fullmatch(name)] or None,
            )
    log(f"Committed: {commit.commit_url}")
    return export


def _readme_stays(api: HfApi, repo_id: str, there: list[str], source: Source) -> bool:
    """Whether the one in the repository does."""
    if "README.md" not in there or has_own_card(source.folder):
        return False
    if full_card(source.folder) is None:
        return True
    text = Path(api.hf_hub_download(repo_id, "README.md")).read_text(encoding="utf-8", errors="replace")
    return is_own_card(text)


def _check_name(repo_id: str) -> None:
    try:
        validate_repo_id(repo_id)
        good = repo_id.count("/") == 1
    except HFValidationError:
        good = False
    if not good:
        raise UserError(
            f"--push {repo_id}: must be OWNER/NAME, letters, digits, '-', '_' and '.' only, e.g. my-account/my-model."
        )


@contextmanager
def _explained(repo_id: str) -> Iterator[None]:
    """Inside are calls to the Hub: what goes wrong there is said in one message, with what to do."""
    try:
        yield
    except (HTTPError, OSError) as error:
        raise UserError(f"--push {repo_id}: {_advice(error)}") from error


def _advice(error: Exception) -> str:
    if isinstance(error, LocalTokenNotFoundError):
        return "no token was found. Log in with `hf auth login`, or set HF_TOKEN; the token needs the right to write."
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set, so nothing is uploaded. Unset it, or export to a folder."
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        if status == 401:
            return "the Hub does not accept the token (401). Log in again with `hf auth login`, or renew HF_TOKEN."
        if status == 403:
            return "the token may not write there (403). Give a name of your own, or a token with the right to write."
        return f"the Hub answered {status} ({_first_line(error)}). Nothing or all was uploaded; try again."
    return f"the Hub cannot be reached ({_first_line(error)}). Try again, or export to a folder."


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:300]


def _megabytes(folder: Path) -> str:
    return f"{sum(path.stat().st_size for path in folder.rglob('*') if path.is_file()) / 1e6:,.1f} MB"
