"""A study on a small text, and records that nobody measured."""

import random

from hybridlm.evaluation.comparison.jobs import Job
from hybridlm.evaluation.comparison.study import read_study

RECIPE = """
data:
  prepare: {sources: [{path: texts}], output: prepared, vocab_size: 270, validation: {by: position, share: 0.2}}
  sequence_length: 16
model: {pattern: rglru, hidden_size: 16, num_attention_heads: 2}
training: {steps: 3, batch_size: 2}
validation: {at_start: false}
"""
STUDY = """
recipe: recipe.yaml
models:
  fading: {}
  both: {model.pattern: rglru bmru}
rates: [0.01, 0.02, 0.04]
search: {training.steps: 2}
final: {training.steps: 3}
seeds: [5, 6]
lengths: [4, 8]
"""


def write_study(folder, study=STUDY):
    """Text, recipe and study in `folder`; the study's path."""
    words = ["the ", "sea ", "was ", "calm ", "and ", "a ", "grey ", "ship ", "went ", "past "]
    (folder / "texts").mkdir()
    (folder / "texts" / "one.txt").write_text("".join(random.Random(0).choices(words, k=900)))
    (folder / "recipe.yaml").write_text(RECIPE)
    (folder / "study.yaml").write_text(study)
    return folder / "study.yaml"


def make_study(folder, study=STUDY):
    return read_study(write_study(folder, study))


def record(study, model, stage, rate, seed, bits=2.0, failed=None, **more):
    job = Job(study, model, stage, rate, seed)
    known = {"model": model, "stage": stage, "rate": rate, "seed": seed, "recipe": job.decides}
    known |= {"command": f"hybridlm pretrain {job.name}", "versions": {"torch": "2"}}
    if failed:
        return known | {"failed": failed}
    figures = {"parameters": 1000, "cache_bytes": 64, "cache_bytes_per_token": 0, "validation_bytes": 500}
    if stage == "final":
        figures["generation"] = {"position": 8, "tokens_per_second": 123.4}
    return known | figures | {"bits_per_byte": bits, "tokens_per_second": 10.0, "seconds": 1.0} | more


def with_tests(*bits):
    rows = [{"length": length, "bits_per_byte": value} for length, value in zip((4, 8), bits, strict=True)]
    places = [{"from": a, "to": b, "bits_per_byte": bits[0] + plus} for a, b, plus in ((1, 4, 0.1), (5, 8, 0))]
    return {"test": {"by_context": rows, "by_position": places, "texts": ["held.txt"], "n_bytes": 321}}
