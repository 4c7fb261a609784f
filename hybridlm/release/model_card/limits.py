"""What a reader must not expect of a checkpoint, as far as its files say."""

from __future__ import annotations

from typing import Any

from hybridlm.model.versions_hybridlm import REQUIREMENT
from hybridlm.release.model_card.training import Training


def limits(facts: dict[str, Any], training: Training | None, language: list[str], measured: bool) -> list[str]:
    """Sentences. facts: of `describe`. language: of the texts, where it is known."""
    lines = _training(training) if training is not None else []
    if language:
        lines.append(f"Language of its training data: {', '.join(language)}.")
    if not measured:
        lines.append("Nothing was measured of it beyond what stands above.")
    lines.append("Bias, toxicity, truthfulness and safety were not measured.")
    growth = facts["cache_bytes_per_token"]
    if growth:
        lines.append(f"What it holds of a text grows by {growth:,} bytes a token, since it has attention layers.")
    else:
        lines.append(
            f"What it holds of a text is {facts['cache_bytes']:,} bytes, however long the text is: it cannot keep all "
            "of a long one."
        )
    lines.append(f"It runs with `{REQUIREMENT}`, and refuses other releases.")
    return lines


def _training(training: Training) -> list[str]:
    state, length = training.state, training.setting("data.sequence_length")
    lines = []
    if state.step < state.total_steps and not state.stopped_early:
        lines.append(f"It is the model of step {state.step:,} of {state.total_steps:,}: its training had not ended.")
    if state.epsilon:
        lines.append(
            f"It was saved while epsilon was {state.epsilon:.3g}. A loaded model has epsilon 0, which it was not yet "
            "trained for."
        )
    lines.append("It was trained to go on with texts, and not to follow instructions or to answer.")
    if length:
        carried = ", with states carried on" if training.setting("data.carry_state") else ""
        lines.append(f"It was trained on sequences of {length:,} tokens{carried}.")
    return lines
