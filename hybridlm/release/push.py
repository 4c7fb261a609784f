"""An export, uploaded to the Hugging Face Hub in one commit: readers see all of it or none.

The client's own `upload_folder` may spread a folder over several commits; `create_commit` never does. What breaks off
leaves the branch as it was, and the same call goes on: weights that have arrived are not sent again.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi, ModelInfo
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    HTTPError,  # pyright: ignore[reportPrivateImportUsage]
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
)
from huggingface_hub.utils import validate_repo_id
from safetensors import SafetensorError

from hybridlm.errors import UserError
from hybridlm.release.card import BENCHMARKS, PICTURE, WRITTEN, has_own_card, is_full_card, is_own_card
from hybridlm.release.export import (
    TOKENIZER,
    WEIGHTS_AND_CODE,
    Export,
    Source,
    open_source,
    tell_of_own_card,
    write_export,
)

_AGAIN = " Nothing is half-committed: run the same command again. Weights that have arrived are not sent twice."
_NO_BRANCH = re.compile(r"^$|^[-./]|[\x00-\x20\x7f~^:?*\[\\]|\.\.|//|/\.|@\{|^@$|\.lock(/|$)|[./]$|^[0-9a-f]{40}$")
"""What no branch is called: git's rules, and names of commits."""
_PASSING = (408, 412, 429, 500, 502, 503, 504)
"""Answers after which the same request may succeed."""


def push_checkpoint(
    checkpoint: str | Path,
    repo_id: str,
    *,
    private: bool = False,
    revision: str | None = None,
    message: str | None = None,
    token: str | None = None,
    log: Callable[[str], None] = print,
) -> Export:
    """Uploads what `export_checkpoint` would write to OWNER/NAME on the Hub, which is made where there is none.

    Weights and code of an earlier push that the new one no longer has are removed in the same commit, as are its
    results of benchmarks, and, where the new one has a tokenizer, what is left of the old one. A README that somebody
    wrote or changed in the repository stays, unless the checkpoint has one of its own. private: a new
    repository is private (else: the owner's default), and one that is there must be. revision: a branch (None: main),
    made from main where there is none. message: of the commit. token: None takes HF_TOKEN, or the one of
    `hf auth login`.

    Raises UserError: what `export_checkpoint` refuses, no token, no right to write, a public repository with `private`,
    the Hub out of reach, no room for the export. Nothing is made on the Hub before the export is whole.
    """
    _check_name(repo_id)
    _check_words(revision, message)
    source = open_source(checkpoint)
    api = HfApi(token=token)
    with _explained(repo_id):
        api.whoami()  # before the model is loaded
    with tempfile.TemporaryDirectory(prefix="hybridlm-") as temporary:
        folder = Path(temporary)
        log(f"Exporting {source.name} ({source.architecture})")
        tell_of_own_card(source, log)
        export = replace(_export_aside(source, folder, repo_id), revision=revision)
        log(f"Uploading {_megabytes(folder)} to {repo_id}")
        message = message or f"Upload {export.architecture} with its code"
        with _explained(repo_id, _AGAIN):
            head = _open_branch(api, repo_id, private, revision)
            commit = _commit(api, head, source, folder, revision, message)
    log(f"{'Nothing has changed since' if commit.oid == head.sha else 'Committed:'} {commit.commit_url}")
    return export


def _export_aside(source: Source, folder: Path, repo_id: str) -> Export:
    try:
        return write_export(source, folder, repo_id, repo_id)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"the export cannot be written to {folder.parent} before it is uploaded ({_first_line(error)}). Make room, "
            "or set TMPDIR to a folder with room for the weights."
        ) from error


def _open_branch(api: HfApi, repo_id: str, private: bool, revision: str | None) -> ModelInfo:
    """The branch as it stands, made together with its repository where there is none."""
    api.create_repo(repo_id, private=private or None, exist_ok=True)
    info = api.model_info(repo_id)
    if private and not info.private:
        raise UserError(
            f"--private: {repo_id} is on the Hub already, and is public. Nothing was uploaded. Make it private in its "
            "settings on the Hub, give another name, or leave --private out."
        )
    if revision in (None, "main"):
        return info
    if not revision.startswith("refs/pr/"):
        api.create_branch(repo_id, branch=revision, exist_ok=True)
    return api.model_info(repo_id, revision=revision)


def _commit(
    api: HfApi, head: ModelInfo, source: Source, folder: Path, revision: str | None, message: str
) -> CommitInfo:
    """One commit on top of `head`, which nobody may have moved meanwhile."""
    there = [sibling.rfilename for sibling in head.siblings or []]
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    old = [name for name in there if WEIGHTS_AND_CODE.fullmatch(name)]
    if any(TOKENIZER.fullmatch(name) for name in files):
        old += [name for name in there if TOKENIZER.fullmatch(name)]
    if BENCHMARKS in there and _read(api, head, BENCHMARKS).startswith(WRITTEN):  # of weights that go
        old.append(BENCHMARKS)
    if "README.md" in there:
        text = _read(api, head, "README.md")
        if is_own_card(text) and not has_own_card(source.folder):
            files = {name: path for name, path in files.items() if name not in ("README.md", PICTURE)}
        if is_full_card(text) and PICTURE in there:
            old.append(PICTURE)
    return api.create_commit(
        head.id,
        [
            *(CommitOperationDelete(name, is_folder=False) for name in old if name not in files),
            *(CommitOperationAdd(name, path) for name, path in files.items()),
        ],
        commit_message=message,
        revision=revision,
        parent_commit=head.sha,
    )


def _read(api: HfApi, head: ModelInfo, name: str) -> str:
    path = Path(api.hf_hub_download(head.id, name, revision=head.sha))
    return path.read_text(encoding="utf-8", errors="replace")


def _check_name(repo_id: str) -> None:
    try:
        validate_repo_id(repo_id)
        good = repo_id.count("/") == 1
    except HFValidationError:
        good = False
    if not good:
        raise UserError(
            f"{repo_id!r}: must be OWNER/NAME, letters, digits, '-', '_' and '.' only, e.g. my-account/my-model."
        )


def _check_words(revision: str | None, message: str | None) -> None:
    if revision is not None and _NO_BRANCH.search(revision):
        raise UserError(
            f"--revision {revision!r}: must be the name of a branch as git has them, e.g. step-1000. A commit cannot "
            "be added to one that others stand on."
        )
    if message is not None and not message.strip():
        raise UserError("--message: it is empty. Say what the commit changes, or leave it out.")


@contextmanager
def _explained(repo_id: str, again: str = "") -> Iterator[None]:
    """Inside are calls to the Hub: what goes wrong there is said in one message, with what to do. again: what to add
    where the same command may succeed later."""
    try:
        yield
    except UserError:
        raise
    except (HTTPError, OSError, RuntimeError, ValueError) as error:  # the last two: of uploads, and unreadable answers
        raise UserError(f"{repo_id}: {_advice(_root(error), again)}") from error


def _root(error: Exception) -> Exception:
    """What an upload failed of; the client hands it on inside a RuntimeError that names the file alone."""
    while type(error) is RuntimeError and isinstance(error.__cause__, Exception):
        error = error.__cause__
    return error


def _advice(error: Exception, again: str) -> str:
    if isinstance(error, LocalTokenNotFoundError):
        return "no token was found. Log in with `hf auth login`, or set HF_TOKEN; the token needs the right to write."
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set, so nothing is uploaded. Unset it, or export to a folder."
    if isinstance(error, HfHubHTTPError):
        return _advice_to_answer(error, again)
    if isinstance(error, HTTPError | ConnectionError | TimeoutError) or (
        isinstance(error, OSError) and not error.errno
    ):
        return f"the Hub cannot be reached ({_first_line(error)}).{again or ' Try again, or export to a folder.'}"
    return f"the upload failed ({_first_line(error)}).{again}"


def _advice_to_answer(error: HfHubHTTPError, again: str) -> str:
    status, said = error.response.status_code, (error.server_message or "").strip() or str(error)
    answer = f"{status}: {' '.join(said.split())[:300]}"
    if status == 401:
        return (
            "the Hub does not accept the token (401). Log in again with `hf auth login`, or renew HF_TOKEN, which is "
            "taken in place of the login where it is set."
        )
    if status == 403:
        return f"the token may not write there ({answer}). Give a name of your own, or a token with the right to write."
    if status == 412:
        return f"somebody else has committed to it meanwhile ({answer}).{again}"
    return f"the Hub answered {answer}.{(again or ' Try again later.') if status in _PASSING else ''}"


def _first_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def _megabytes(folder: Path) -> str:
    return f"{sum(path.stat().st_size for path in folder.rglob('*') if path.is_file()) / 1e6:,.1f} MB"
