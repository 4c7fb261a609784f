"""Started by test_peers.py: a run in which one process is lost after two steps; when that was, and when each ended.

losing_peers.py HOW VICTIM RECIPE FOLDER
"""

import os
import signal
import sys
import time
from pathlib import Path

from hybridlm.cli import main
from hybridlm.training import loop, state


def lose(how: str, folder: Path) -> None:
    """This process is lost. Only `raise` lets it clean up."""
    (folder / "lost").write_text(str(time.time()), encoding="utf-8")
    if how == "raise":
        raise KeyError("a mistake in one process")
    if how == "sleep":  # for ever, were the test not to end
        until = time.monotonic() + 40
        while len(list(folder.glob("end*"))) + 1 < int(os.environ["WORLD_SIZE"]) and time.monotonic() < until:
            time.sleep(0.1)
        os._exit(7)
    os.kill(os.getpid(), signal.SIGKILL)


def arm(how: str, folder: Path) -> None:
    step, save = loop._Run._step, state.save_model

    def losing_step(self, batches):
        if self.done == 2 and how in ("raise", "sleep"):
            lose(how, folder)
        if self.done == 2 and how == "kill":  # between the gradients of two layers
            self.plain.model.layers[0].register_full_backward_hook(lambda *_: lose(how, folder))
        return step(self, batches)

    def losing_save(path, model, tokenizer, saved):
        save(path, model, tokenizer, saved)
        if saved.step == 2 and how == "save":  # the folder is half-written
            lose(how, folder)

    loop._Run._step, state.save_model = losing_step, losing_save


def late_to_the_barrier(folder: Path) -> None:
    """The process comes as far as the save of step 2, where the main process would wait for days."""
    on_main = state.on_main
    calls = []

    def sleeping(accelerator, action):
        calls.append(action)
        if len(calls) == 2:
            lose("sleep", folder)
        return on_main(accelerator, action)

    state.on_main = sleeping


if __name__ == "__main__":
    how, victim, recipe, out = sys.argv[1:]
    rank, folder = os.environ["RANK"], Path(out)
    if rank == victim:
        late_to_the_barrier(folder) if how == "late" else arm(how, folder)
    code = main(["pretrain", "--config", recipe])
    (folder / f"end{rank}").write_text(str(time.time()), encoding="utf-8")
    sys.exit(code)
