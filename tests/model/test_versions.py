"""Another release of transformers is refused when the code is loaded, in one message that says what to install."""

import re
import tomllib
from pathlib import Path

import pytest
import transformers
from launching import launch
from models import make_model

import hybridlm
from hybridlm.model.versions_hybridlm import REQUIREMENT, TESTED, check_transformers

ROOT = Path(hybridlm.__file__).parents[1]


@pytest.mark.parametrize("version", ["5.23.0", "5.23.4", "5.23.1.dev0", transformers.__version__])
def test_the_tested_release_is_taken(version):
    check_transformers(version)


@pytest.mark.parametrize("version", ["5.24.0", "5.24.0.dev0", "5.22.9", "5.2", "4.57.3", "6.23.0"])
def test_any_other_is_refused(version):
    with pytest.raises(ImportError) as refused:
        check_transformers(version)
    said = str(refused.value)
    assert f"installed is {version}," in said
    assert f"transformers {TESTED};" in said
    assert said.endswith(f"pip install '{REQUIREMENT}'")
    assert "\n" not in said


def test_the_metadata_asks_for_the_same():
    """And the versions that are tested are of that release."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert [need for need in project["dependencies"] if need.startswith("transformers")] == [REQUIREMENT]
    (pinned,) = re.findall(r"^transformers==(.*)$", (ROOT / "constraints.txt").read_text(), flags=re.MULTILINE)
    check_transformers(pinned)


def child(code, folder, *argv):
    """A process without the package, in an empty folder, where transformers says that it is 5.24.0."""
    code = f"import sys, transformers\ntransformers.__version__ = '5.24.0'\n{code}"
    return launch(["-c", code, *argv], cwd=folder, imported="libraries")


def test_the_package_is_not_imported_there(tmp_path):
    done = child(f"sys.path.insert(0, {str(ROOT)!r})\nimport hybridlm", tmp_path)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("ImportError: hybridlm was tested with transformers ")


@pytest.mark.parametrize("auto", ["AutoConfig", "AutoModelForCausalLM", "AutoModelForTokenClassification"])
def test_the_code_in_a_checkpoint_is_not_either(auto, tmp_path):
    model = make_model("rglru bmru")
    model.carry_code()
    model.save_pretrained(tmp_path / "model")
    load = (
        "transformers.dynamic_module_utils.HF_MODULES_CACHE = sys.argv[2]\n"
        f"transformers.{auto}.from_pretrained(sys.argv[1], trust_remote_code=True)"
    )
    done = child(load, tmp_path, tmp_path / "model", tmp_path / "modules")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("ImportError: hybridlm was tested with transformers ")
    assert "5.24.0" in done.stderr.splitlines()[-1]
