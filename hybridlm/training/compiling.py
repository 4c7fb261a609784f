"""torch.compile for the training steps, in place: the names in a checkpoint stay as they are.

Only training steps at a constant epsilon, and exploration, run compiled. They are numbers that the cells compute with,
so each of their values would be a graph of its own; torch gives up after eight, for good. Validation, the average and
samples run as they do after loading, and need no graphs of their own.
"""

from contextlib import AbstractContextManager, nullcontext

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn

from hybridlm.errors import UserError


class Compiling:
    """Compiles `model` where `wanted`; `uncompiled()` switches that off for a while. Raises UserError, on all
    processes, where one of them cannot compile."""

    def __init__(self, wanted: bool, model: nn.Module, accelerator: Accelerator):
        self.wanted = wanted
        if wanted:
            check_compiler(accelerator)
            model.compile()

    def uncompiled(self, when: bool = True) -> AbstractContextManager[object]:
        """Inside, and where `when` holds, the model runs eagerly."""
        return torch.compiler.set_stance("force_eager") if self.wanted and when else nullcontext()


def check_compiler(accelerator: Accelerator) -> None:
    """Compiles a line, as a missing compiler, or a Python or device that torch.compile does not know, is found out by
    trying alone."""
    problem = None
    try:
        line = torch.compile(lambda x: torch.sin(x) + 1.0, fullgraph=True)
        line(torch.ones(8, device=accelerator.device))
    except Exception as error:  # whatever a compiler, a driver or torch raises
        cause = getattr(error, "inner_exception", error)  # of the backend, which torch wraps
        problem = next((text for text in str(cause).splitlines() if text.strip()), type(cause).__name__)
    found = [text for text in gather_object([problem]) if text]
    if found:
        needs = "a C++ compiler such as g++" if accelerator.device.type == "cpu" else "Triton and a C compiler"
        raise UserError(
            f"training.compile=true does not work here: {found[0]} torch.compile needs {needs}. Install that, or set "
            "training.compile=false."
        )
