"""Started by test_processes_stopping.py: pretrains from a recipe; one process gets a signal in the middle of a step.

python two_signals.py RECIPE PROCESS STEP SIGNAL
"""

import os
import sys

from hybridlm.training import loop
from hybridlm.training.config import load_config


def main(recipe: str, process: int, step: int, number: int) -> None:
    backward, steps = loop.backward, loop._Run._step

    def note_the_step(self, micro_batches):
        note_the_step.number = self.done + 1
        return steps(self, micro_batches)

    def signalled(accelerator, *args):
        if (accelerator.process_index, note_the_step.number) == (process, step):
            os.kill(os.getpid(), number)
        return backward(accelerator, *args)

    loop._Run._step, loop.backward = note_the_step, signalled
    loop.pretrain(load_config(recipe))


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
