"""Fetches transformers' own model tests, for the installed version, from its source archive on the package index.

    python tests/transformers_suite/fetch.py [options of pip download]

They land in `.transformers-suite/VERSION/upstream_tests`. The archive holds `tests/test_*.py` and nothing below: what
these files import from the folders that are missing is in `SUPPORT`, and nothing of it is a test. A second call
downloads nothing.
"""

import shutil
import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).resolve().parent
VERSION = version("transformers")
CACHE = HERE.parents[1] / ".transformers-suite"
FOLDER = CACHE / VERSION
PACKAGE = "upstream_tests"

# Keyword arguments that every configuration takes, with values that are not the defaults; for ConfigTester.
_COMMON_KEYWORDS = {
    "output_hidden_states": True,
    "return_dict": False,
    "dtype": "float16",
    "chunk_size_feed_forward": 5,
    "is_encoder_decoder": True,
    "architectures": ["SomeModel"],
    "id2label": {0: "label"},
    "label2id": {"label": 0},
    "problem_type": "regression",
}
SUPPORT = {
    "__init__.py": "",
    "exporters/__init__.py": "",
    "exporters/test_export.py": "class ExportTesterMixin:\n    pass\n",
    "generation/__init__.py": "",
    "generation/test_utils.py": "class GenerationTesterMixin:\n    pass\n",
    "utils/__init__.py": "",
    "utils/test_configuration_utils.py": f"config_common_kwargs = {_COMMON_KEYWORDS!r}\n",
    "distributed_testing_utils.py": (HERE / "support" / "distributed_testing_utils.py").read_text(encoding="utf-8"),
}


def what_is_missing() -> str | None:
    """None where the tests are there and their support files are these; else what is wrong, and what to do."""
    tests = FOLDER / PACKAGE
    advice = f"fetch them: {Path(sys.executable).name} tests/transformers_suite/fetch.py (needs the package index)"
    if not (tests / "test_modeling_common.py").is_file():
        return f"transformers {VERSION}'s own tests are not there; {advice}"
    stale = [name for name, text in SUPPORT.items() if _text(tests / name) != text]
    if stale:
        return f"what stands beside transformers' own tests is out of date ({', '.join(stale)}); {advice}"
    return None


def _text(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.is_file() else None


def _download(folder: Path, options: list[str]) -> Path:
    """The source archive of the installed version, downloaded into `folder`."""
    wanted = f"transformers=={VERSION}"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", "transformers"]
    command += [*options, "--dest", str(folder), wanted]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    archives = list(folder.glob("*.tar.gz"))
    if done.returncode or not archives:
        raise SystemExit(
            f"The source archive of {wanted} could not be downloaded. It is needed once, for transformers' own model "
            "tests. Check that pip reaches a package index (pip options can be given after this script's name), then "
            f"call it again. pip said:\n{done.stderr.strip()}"
        )
    return archives[0]


def _unpack(archive: Path, folder: Path) -> None:
    """The files `*/tests/test_*.py` of the archive, into `folder`."""
    with tarfile.open(archive) as tar:
        for member in tar:
            parts = Path(member.name).parts
            if member.isfile() and len(parts) == 3 and parts[1] == "tests" and parts[2].startswith("test_"):
                content = tar.extractfile(member)
                assert content is not None
                (folder / parts[2]).write_bytes(content.read())
    if not (folder / "test_modeling_common.py").is_file():
        raise SystemExit(f"{archive.name} holds no tests/test_modeling_common.py: this version cannot be tested so.")


def fetch(options: list[str]) -> None:
    """Everything is made in a folder beside, which then gets its name, so that half of it is never taken for all."""
    CACHE.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE, prefix=".partial-") as scratch:
        aside = Path(scratch) / VERSION
        tests = aside / PACKAGE
        if (FOLDER / PACKAGE / "test_modeling_common.py").is_file():
            shutil.copytree(FOLDER / PACKAGE, tests, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            tests.mkdir(parents=True)
            _unpack(_download(Path(scratch), options), tests)
        for name, text in SUPPORT.items():
            path = tests / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
        if FOLDER.exists():
            FOLDER.rename(Path(scratch) / "old")
        aside.rename(FOLDER)


if __name__ == "__main__":
    if what_is_missing() is not None:
        fetch(sys.argv[1:])
    print(f"transformers {VERSION}'s own model tests are in {FOLDER / PACKAGE}")
