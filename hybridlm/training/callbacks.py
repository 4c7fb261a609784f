"""`EpsilonCallback`, `ExplorationCallback`: the schedules of `bmru` and `nfsm` layers for `transformers.Trainer`.

    from hybridlm.training import EpsilonCallback
    Trainer(model=model, args=args, train_dataset=data, callbacks=[EpsilonCallback()])

The trainers built on it take them too. A state is set where an optimizer step begins and is 0 again where it ends, so
that what lies between two steps (evaluation, saving, samples, other callbacks) sees the model as it is used.
"""

from typing import Any

from pydantic import ValidationError
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hybridlm.errors import UserError
from hybridlm.training.annealing import EpsilonConfig, ExplorationConfig
from hybridlm.training.schedules import annealed
from hybridlm.training.training_states import put


class _AnnealingCallback(TrainerCallback):
    """One training state of the model, by the schedule of its section."""

    name: str
    schedule: EpsilonConfig | ExplorationConfig

    def __init__(self, section: type[EpsilonConfig] | type[ExplorationConfig], start: float, hold: float, zero: float):
        try:
            self.schedule = section(start=start, hold=hold, zero=zero)
        except ValidationError as error:
            problems = "; ".join(map(_explain, error.errors(include_url=False)))
            raise UserError(f"{type(self).__name__}: {problems}") from None
        self._last: float | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        self._last = None
        self._set(model, 0.0)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        value = annealed(state.global_step, state.max_steps, self.schedule)
        self._last = value if self._set(model, value) else None

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        self._set(model, 0.0)

    on_epoch_end = on_train_end = on_step_end  # where another callback stopped the run in the middle of a step

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if self._last is not None and logs is not None and "loss" in logs:
            logs[self.name] = self._last
            state.log_history[-1][self.name] = self._last  # written before the callbacks are called

    def _set(self, model: nn.Module | None, value: float) -> bool:
        """Sets it in the hybridlm model inside `model`; False where its pattern has no cell that knows it."""
        # By name and not by class: a checkpoint loaded with trust_remote_code brings classes of its own.
        parts = () if model is None else model.modules()
        plain: Any = next((part for part in parts if hasattr(type(part), f"set_{self.name}")), None)
        if plain is None:
            raise UserError(
                f"{type(self).__name__}: model={type(model).__name__} has no hybridlm model inside, so there is no "
                f"{self.name} to set. Train a HybridLM model, or leave the callback out."
            )
        if getattr(plain, self.name) is None:
            return False
        put(plain, {self.name: value})
        return True


class EpsilonCallback(_AnnealingCallback):
    """Anneals epsilon over the run: `start` for the `hold` share of its steps, then linearly to 0 at the `zero` share.

    The value of a step is a function of `state.global_step` and `state.max_steps` alone, so a resumed run goes on with
    the right one. The model may be wrapped (DistributedDataParallel, peft, torch.compile). Stacks without `bmru` are
    left as they are. Training rows of the log get the `epsilon` of their last step, in `state.log_history` and in
    what is printed; trackers of `report_to` are called earlier and do not see it.

    This is for models that begin with random weights. A trained `bmru` has learned to work at epsilon = 0, which is
    what it has after loading: fine-tune it without this callback.

    After an exception inside a step (Ctrl-C, out of memory) the model still has that step's epsilon:
    `model.set_epsilon(0.0)` before it is used. Raises UserError for shares out of range, and where training begins if
    the model is none of hybridlm's.
    """

    name = "epsilon"

    def __init__(self, *, start: float = 1.0, hold: float = EpsilonConfig.hold, zero: float = EpsilonConfig.zero):
        super().__init__(EpsilonConfig, start, hold, zero)


class ExplorationCallback(_AnnealingCallback):
    """The same for the noise on the transitions of `nfsm` layers, `exploration`. Stacks without `nfsm` are left as they
    are. Beside `EpsilonCallback` where a stack has both."""

    name = "exploration"

    def __init__(
        self, *, start: float = 1.0, hold: float = ExplorationConfig.hold, zero: float = ExplorationConfig.zero
    ):
        super().__init__(ExplorationConfig, start, hold, zero)


def _explain(problem: Any) -> str:
    message = problem["msg"].removeprefix("Value error, ")
    return f"{problem['loc'][0]}={problem['input']!r}: {message}" if problem["loc"] else message
