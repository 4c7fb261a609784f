"""Started by test_processes.py and test_sequence.py: runs in which one process computes a NaN, number 1 where nothing
else is said; each writes down its error."""

import json
import os
import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from torch.nn.functional import linear

from hybridlm.training import loop
from hybridlm.training.config import load_config
from hybridlm.training.guard import DivergedError


class _BadBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return torch.full_like(grad, float("nan"))


SPOIL = {"forward": lambda x: x * float("nan"), "backward": _BadBackward.apply, "weight": _BadBackward.apply}
"""The last one spoils a weight as it is used, and so its gradient alone."""


def main(recipe: str, out: str, forward: str = "1", backward: str = "1") -> None:
    bad = {"forward": int(forward), "backward": int(backward), "weight": int(backward)}
    made = loop.build_model
    rank = int(os.environ["RANK"])
    facts: dict = {"rank": rank}
    Accelerator(cpu=True)  # a run that finds one leaves the processes joined for the next run
    for kind, spoil in SPOIL.items():

        def build(*args, kind=kind, spoil=spoil):
            model = made(*args)
            if rank == bad[kind]:
                cell = model.model.layers[1].mixer.cells[0]
                _plant(cell.candidate if kind == "weight" else cell, spoil, weight=kind == "weight")
            return model

        loop.build_model = build
        try:
            loop.pretrain(load_config(recipe, [f"run.name={kind}"]))
        except DivergedError as error:
            facts[kind] = str(error)
    Path(out, f"rank{rank}.json").write_text(json.dumps(facts), encoding="utf-8")


def _plant(module, spoil, weight: bool) -> None:
    """From the second of two micro-batches of step 2 on; calls without gradients (validation) are not counted."""
    forward, calls = module.forward, []

    def bad(*inputs):
        if torch.is_grad_enabled():
            calls.append(1)
        if weight:
            return linear(inputs[0], spoil(module.weight) if len(calls) > 3 else module.weight, module.bias)
        h, state = forward(*inputs)
        return (spoil(h) if len(calls) > 3 else h), state

    module.forward = bad


if __name__ == "__main__":
    main(*sys.argv[1:])
