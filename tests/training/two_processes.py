"""Started by test_processes.py: pretrains from a recipe and writes down the world that it ran in."""

import json
import os
import sys
from pathlib import Path

from accelerate import Accelerator

from hybridlm.training import loop
from hybridlm.training.config import load_config


def main(recipe: str, out: str) -> None:
    worlds = []
    validate = loop.validate

    def note_the_world(accelerator: Accelerator, *args):
        worlds.append(accelerator.num_processes)
        return validate(accelerator, *args)

    loop.validate = note_the_world
    result = loop.pretrain(load_config(recipe))
    facts = {"worlds": worlds, "rank": int(os.environ["RANK"]), "validation": result.validation}
    Path(out, f"rank{facts['rank']}.json").write_text(json.dumps(facts), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
