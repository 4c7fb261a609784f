"""Started by test_trainer.py: transformers.Trainer in each of two processes; what each of them saw."""

import json
import os
import sys
import warnings
from pathlib import Path

from models import make_model
from test_trainer import PATTERN, SMOOTH, STEPS, Spy, annealing, counting, head, labelled_tokens, logged
from transformers import AutoModelForTokenClassification, Trainer, TrainingArguments

warnings.simplefilter("default")


def train(model, callbacks, folder, resume=None, data=None, **arguments):
    settings = TrainingArguments(
        str(folder),
        max_steps=STEPS,
        per_device_eval_batch_size=3,
        learning_rate=1e-2,
        logging_steps=1,
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        dataloader_pin_memory=False,
        **({"save_strategy": "no", "per_device_train_batch_size": 2} | arguments),
    )
    trainer = Trainer(
        model=model,
        args=settings,
        train_dataset=data or counting(32),
        eval_dataset=counting(6, seed=1),
        callbacks=callbacks,
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def main(folder: Path) -> None:
    smooth = train(make_model(SMOOTH), [], folder / "smooth", eval_strategy="steps", eval_steps=3)
    spies = [Spy(), Spy()]
    often = {"save_strategy": "steps", "save_steps": 2, "eval_strategy": "steps", "eval_steps": 2}
    annealed = train(make_model(PATTERN), [annealing(), spies[0]], folder / "annealed", **often)
    half = str(folder / "annealed" / "checkpoint-2")
    resumed = train(make_model(PATTERN, seed=9), [annealing(), spies[1]], folder / "resumed", half, **often)
    parts = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2}
    tokens = head(AutoModelForTokenClassification)
    labelled = train(tokens, [], folder / "labelled", data=labelled_tokens(32), **parts)
    facts = {
        "rank": int(os.environ["RANK"]),
        "world": smooth.args.world_size,
        "wrapped": type(smooth.model_wrapped).__name__,
        "loss": logged(smooth),
        "eval_loss": logged(smooth, "eval_loss"),
        "labelled_loss": logged(labelled),
        "annealed_loss": logged(annealed),
        "resumed_loss": logged(resumed),
        "epsilon": spies[0].seen["optimizer_step"],
        "resumed_epsilon": spies[1].seen["optimizer_step"],
        "epsilon_in_evaluation": [value for spy in spies for value in spy.seen["prediction_step"]],
    }
    (folder / f"rank{facts['rank']}.json").write_text(json.dumps(facts), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
