"""Started by test_processes_stopping.py: pretrains from a recipe; one process gets a signal in the middle of a step, or
of the validation behind it.

python two_signals.py RECIPE PROCESS STEP SIGNAL (backward | validation)
"""

import os
import sys

from hybridlm.training import loop, validation
from hybridlm.training.config import load_config


def main(recipe: str, process: int, step: int, number: int, place: str) -> None:
    backward, batches, steps = loop.backward, validation.validation_batches, loop._Run._step
    rank = int(os.environ["RANK"])

    def note_the_step(self, micro_batches):
        note_the_step.number = self.done + 1
        return steps(self, micro_batches)

    def signal_at(here: str) -> None:
        if (rank, note_the_step.number, here) == (process, step, place):
            os.kill(os.getpid(), number)

    def in_a_step(*args):
        signal_at("backward")
        return backward(*args)

    def in_a_validation(*args, **keywords):
        for index, batch in enumerate(batches(*args, **keywords)):
            if index == 1:
                signal_at("validation")
            yield batch

    loop._Run._step, loop.backward, validation.validation_batches = note_the_step, in_a_step, in_a_validation
    loop.pretrain(load_config(recipe))


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:5]), sys.argv[5])
