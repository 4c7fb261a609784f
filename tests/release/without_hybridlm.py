"""An environment that has the libraries of this one, and not the package."""

import sysconfig
import venv
from pathlib import Path

import pytest

import hybridlm


def python_without_hybridlm(folder):
    """The interpreter of a new environment. A folder named in a .pth file is searched for packages, but the .pth files
    in it, through which an editable install of hybridlm is found, are not read."""
    libraries = {sysconfig.get_path(kind) for kind in ("purelib", "platlib")}
    if Path(hybridlm.__file__).parents[1] in map(Path, libraries):
        pytest.skip("hybridlm lies among the libraries here; an editable install (make test) keeps it apart from them")
    venv.create(folder, with_pip=False, symlinks=True)
    scheme = {"base": str(folder), "platbase": str(folder)}
    own = Path(sysconfig.get_path("purelib", "venv", scheme))
    (own / "libraries.pth").write_text("\n".join(sorted(libraries)) + "\n")
    return Path(sysconfig.get_path("scripts", "venv", scheme)) / "python"
