"""Builds the C kernels. Optional: without a C compiler the package installs all the same and runs in pure PyTorch.

Everything else stands in pyproject.toml.
"""

import os
import runpy
from concurrent.futures import ThreadPoolExecutor

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

sources = runpy.run_path("hybridlm/ops/cpu/sources.py")


class BuildLibrary(build_ext):
    """A plain library for ctypes, not a module of Python: its name does not depend on Python's version."""

    def get_ext_filename(self, fullname):
        return os.path.join(*fullname.split(".")[:-1], sources["LIBRARY"])

    def get_export_symbols(self, ext):
        return ext.export_symbols

    def build_extensions(self):
        one_by_one = self.compiler.compile

        def together(files, **options):
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                objects = pool.map(lambda file: one_by_one([file], **options), files)
                return [name for names in objects for name in names]

        self.compiler.compile = together
        super().build_extensions()


FOLDER = "hybridlm/ops/cpu/"
setup(
    cmdclass={"build_ext": BuildLibrary},
    ext_modules=[
        Extension(
            "hybridlm.ops.cpu._scans",
            sources=[FOLDER + name for name in sources["SOURCES"] if name.endswith(".c")],
            depends=[FOLDER + name for name in sources["SOURCES"] if name.endswith(".h")],
            define_macros=[("SOURCE_HASH", f'"{sources["source_hash"]()}"')],
            extra_compile_args=list(sources["FLAGS"]),
            libraries=["pthread", "dl", "m"],
            optional=True,
        )
    ],
)
