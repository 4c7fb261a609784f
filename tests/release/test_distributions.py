"""The wheel, built from the sdist, in an environment of its own, with a C compiler and without.

The environment borrows the dependencies of this one; the package itself is not among them.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytest.importorskip("setuptools", reason="setuptools builds the distributions; pip brings its own")
pytestmark = pytest.mark.skipif(not (ROOT / "setup.py").exists(), reason="the tests run without the source tree")

CHECK = """
import runpy
import sys
from pathlib import Path

import torch

import hybridlm
from hybridlm import HybridLMConfig, HybridLMForCausalLM, ops
from hybridlm.data.austen import austen_paths
from hybridlm.training.config import load_config

package = Path(hybridlm.__file__).parent
assert package.is_relative_to(sys.prefix), package
assert all(Path(path).stat().st_size > 400_000 for path in austen_paths())
assert load_config(package / "recipes" / "demo.yaml").model["pattern"] == "(rglru bmru)*2"
for name in ("evaluation/inspector/inspector.js", "evaluation/memory/mnist_5k.npz", "release/model_card/template.md"):
    assert (package / name).is_file(), name
model = HybridLMForCausalLM(HybridLMConfig(pattern="rglru bmru", vocab_size=20, hidden_size=16, num_attention_heads=2))
assert model.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=3, min_new_tokens=3).shape == (1, 6)
print(ops.explain())
sys.argv = [sys.argv[1], "--version"]  # the command as it was installed, in this process: its imports take seconds
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run(*words, cwd=None, env=None):
    done = subprocess.run([str(word) for word in words], cwd=cwd, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def backend(tree, call, out, **environment):
    """What setuptools builds in `tree`: the file's path."""
    code = f"import sys; from setuptools import build_meta; print(build_meta.{call}(sys.argv[1]))"
    printed = run(sys.executable, "-c", code, out, cwd=tree, env=os.environ | environment)
    return out / printed.splitlines()[-1]


@pytest.fixture(scope="module")
def sdist(tmp_path_factory):
    """The tree as pip would have unpacked it."""
    tree, out = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("sdist")
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE", "NOTICE", "hybridlm_command.py"):
        shutil.copy(ROOT / name, tree / name)
    shutil.copytree(ROOT / "hybridlm", tree / "hybridlm", ignore=shutil.ignore_patterns("__pycache__", "*.shared"))
    archive = backend(tree, "build_sdist", out)
    with tarfile.open(archive) as tar:
        tar.extractall(out, filter="data")
    return out / archive.name.removesuffix(".tar.gz")


def environment(folder):
    """A virtual environment without the package; its Python."""
    run(sys.executable, "-m", "venv", "--without-pip", folder)
    python = folder / "bin" / "python"
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    (site / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


@pytest.mark.parametrize("compiler", ["cc", "none"])
def test_the_wheel_works_where_it_is_installed(compiler, sdist, tmp_path):
    if compiler == "cc" and shutil.which("cc") is None:
        pytest.skip("there is no C compiler here")
    tree = shutil.copytree(sdist, tmp_path / "tree")
    script = tmp_path / "compiler"  # without optimisation, in a tenth of the time
    script.write_text('#!/bin/sh\nexec cc "$@" -O0\n')
    script.chmod(0o755)
    wheel = backend(tree, "build_wheel", tmp_path, CC=str(script) if compiler == "cc" else "/bin/false")
    python = environment(tmp_path / "env")
    quiet = ("--no-deps", "--no-index", "--quiet", "--disable-pip-version-check")
    run(sys.executable, "-m", "pip", "--python", python, "install", *quiet, wheel)
    path, command = "cpu" if compiler == "cc" else "torch", tmp_path / "env" / "bin" / "hybridlm"
    assert command.read_text().startswith(f"#!{python}\n")
    assert os.access(command, os.X_OK)
    found, version = run(python, "-c", CHECK, command, cwd=tmp_path).splitlines()
    assert found.startswith(f"{path}: ")
    assert version.startswith("hybridlm 0.1.0")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert any(name.endswith("scans.shared") for name in names) == (compiler == "cc")
    assert not [name for name in names if name.startswith(("tests/", "scripts/"))]
