"""Every module imports by itself, arrows point down, and optional or heavy libraries wait until they are needed."""

import ast
import importlib
import pkgutil
import sys
from pathlib import Path

import pytest
from launching import launch
from transformers.dynamic_module_utils import get_relative_import_files, get_relative_imports

import hybridlm
from hybridlm.model.code_hybridlm import AUTO_MAP, code_files

ROOT = Path(hybridlm.__file__).parent
MODULES = sorted(module.name for module in pkgutil.walk_packages([str(ROOT)], "hybridlm."))
SEAM = "seam_hybridlm.py"
"""The one file of the flat room that may import from the rest, inside `try`."""

ALLOWED = {
    "errors": set(),
    "files": set(),
    "allocator": set(),
    "machine": {""},
    "safe_loading": {"errors"},
    "model": set(),
    "ops": {"errors", "model"},
    "recipes": set(),
    "data": {"errors", "safe_loading", "files"},
    "training": {"errors", "safe_loading", "files", "allocator", "machine", "data", "model", ""},
    "evaluation": {"errors", "safe_loading", "files", "data", "model", "training", ""},
    "bench": {
        "errors",
        "safe_loading",
        "files",
        "allocator",
        "machine",
        "data",
        "model",
        "ops",
        "training",
        "evaluation",
        "",
    },
    "release": {"errors", "safe_loading", "files", "data", "model", "training", "evaluation", ""},
    "convert": {"errors", "safe_loading", "files", "evaluation", ""},
    "demo": {"errors", "data", "training", "evaluation", ""},
    "commands": {"errors", "data", "training", "evaluation", "bench", "release", "convert", "demo", ""},
    "cli": {"errors", "ops", "commands", ""},
}
"""Room -> rooms it may import from; "" is the package itself."""


@pytest.mark.parametrize("name", MODULES)
def test_every_module_imports(name):
    importlib.import_module(name)


def imports(path):
    """(module, whether inside a `try`) of every import of a file, absolute or relative."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    guarded = {node for statement in ast.walk(tree) if isinstance(statement, ast.Try) for node in ast.walk(statement)}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or ""), node in guarded
        elif isinstance(node, ast.Import):
            yield from ((alias.name, node in guarded) for alias in node.names)


def room(path):
    first = path.relative_to(ROOT).parts[0]
    return first.removesuffix(".py")


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_arrows_point_down(path):
    if room(path) == "__init__":
        return
    for module, guarded in imports(path):
        if not module.startswith("hybridlm"):
            continue
        target = ".".join(module.split(".")[1:2])
        if target == room(path) or (path.name == SEAM and guarded):
            continue
        assert target in ALLOWED[room(path)], f"{path.name} imports {module}"


@pytest.mark.parametrize("path", sorted((ROOT / "model").glob("*.py")), ids=lambda path: path.name)
def test_the_flat_room_imports_torch_transformers_and_siblings_only(path):
    """transformers copies these files into checkpoints: subpackages and `from . import name` would be left behind."""
    siblings = {"." + sibling.stem for sibling in path.parent.glob("*_hybridlm.py")}
    siblings |= {"." + sibling.stem for sibling in path.parent.glob("cells_*.py")}
    for module, guarded in imports(path):
        top = module.split(".")[0]
        standard = top in sys.stdlib_module_names or top in ("torch", "transformers", "huggingface_hub", "safetensors")
        assert module in siblings or standard or (path.name == SEAM and guarded), f"{path.name} imports {module}"


@pytest.mark.parametrize("path", sorted((ROOT / "model").glob("*.py")), ids=lambda path: path.name)
def test_transformers_finds_the_imports_of_the_flat_room(path):
    """It reads the text with a regular expression: a line of a docstring that looks like an import is one to it, and
    would end in a missing file; an import in a form that it does not know would be left behind."""
    known = {module[1:] for module, _ in imports(path) if module.startswith(".")}
    assert set(get_relative_imports(path)) == known
    assert "__future__" not in {module for module, _ in imports(path)}, "annotations as text hide the config class"


@pytest.mark.parametrize("reference", sorted(set(AUTO_MAP.values())))
def test_every_class_takes_the_whole_flat_room_with_it(reference):
    """Whichever class is saved where the package is not installed, the files of all the others go along."""
    files = {path for path in (ROOT / "model").glob("*.py") if path.name != "__init__.py"}
    assert {Path(file) for file in get_relative_import_files(ROOT / "model" / f"{reference.split('.')[0]}.py")} == files
    assert set(code_files()) == files


def loaded_after(statement):
    """Top-level modules that a process holds after `statement`: those of torch and transformers among them."""
    code = f"{statement}\nimport sys\nprint(' '.join(sorted({{name.split('.')[0] for name in sys.modules}})))"
    done = launch(["-c", code], imported="libraries")
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_importing_the_package_loads_no_heavy_library():
    loaded = loaded_after("import hybridlm, hybridlm.cli")
    assert "transformers" in loaded
    # accelerate and triton are not in this list: transformers and torch load them where they are installed.
    assert not loaded & {"datasets", "matplotlib", "pandas", "pyarrow", "pydantic", "rich"}
