"""A whole run: what it writes, how it is interrupted, how it goes on."""

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from comparing import rows_without_times, seal
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from hybridlm.errors import UserError
from hybridlm.training import loop, signals
from hybridlm.training.checkpoints import STATE, checkpoints
from hybridlm.training.config import load_config
from hybridlm.training.journal import Journal
from hybridlm.training.loop import pretrain
from hybridlm.training.metrics import read_rows
from hybridlm.training.setup import micro_batch_size
from hybridlm.training.signals import RunInterrupted
from hybridlm.training.step import StepResult

TWENTY = ("training.steps=20", "validation.every=7", "checkpoint.every=5")


def interrupt_at(monkeypatch, step: int, number: int = signal.SIGINT, times: int = 1) -> None:
    """The process gets a signal while the journal writes the row of `step`."""
    write = Journal.step

    def step_and_signal(self, row, *args):
        write(self, row, *args)
        if row["step"] == step:
            for _ in range(times):
                os.kill(os.getpid(), number)

    monkeypatch.setattr(Journal, "step", step_and_signal)


def halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_what_a_run_leaves(recipe):
    config = recipe("training.steps=6", "validation={every: 3, at_start: true}", "checkpoint={every: 2, keep: 2}")
    result = pretrain(config)
    run = config.run.path
    assert result.run_folder == run
    assert load_config(run / "config.yaml") == config
    assert [path.name for path in checkpoints(run)] == ["step-00000004", "step-00000006"]
    assert not list(run.rglob("*.partial*"))

    rows = read_rows(result.metrics)
    training = [row for row in rows if "bits_per_byte" not in row]
    validation = [row for row in rows if "bits_per_byte" in row]
    assert [row["step"] for row in training] == [1, 2, 3, 4, 5, 6]
    assert [row["step"] for row in validation] == [0, 3, 6]
    assert [row["tokens"] for row in training] == [64 * step for step in range(1, 7)]
    assert training[0]["epsilon"] == 1.0
    assert training[-1]["epsilon"] == 0.0
    assert all(row["epsilon"] == 0.0 for row in validation)
    assert all(row["tokens_per_second"] > 0 and row["real_tokens_per_second"] > 0 for row in training)
    assert [row["seconds"] for row in rows] == sorted(row["seconds"] for row in rows)
    assert result.validation == validation[-1]
    assert validation[-1]["bits_per_byte"] < validation[0]["bits_per_byte"]

    model = AutoModelForCausalLM.from_pretrained(result.checkpoint)
    assert model.epsilon == 0.0
    tokenizer = AutoTokenizer.from_pretrained(result.checkpoint)
    assert model.config.eos_token_id == tokenizer.eos_token_id == model.generation_config.eos_token_id
    assert model.config.vocab_size == len(tokenizer)
    assert not (result.checkpoint / STATE / "optimizer.pt").exists()


@pytest.mark.parametrize(
    "extra", [(), ("training.micro_batch_size=2", "model.attention_dropout=0.3", "model.pattern=bmru attention")]
)
def test_twenty_steps_are_ten_a_stop_and_ten_more(recipe, monkeypatch, extra):
    whole = pretrain(recipe(*TWENTY, *extra, "run.name=whole"))
    config = recipe(*TWENTY, *extra, "run.name=halves", "checkpoint.every=0")
    with monkeypatch.context() as patch:
        interrupt_at(patch, 10)
        with pytest.raises(RunInterrupted) as caught:
            pretrain(config)
    assert (caught.value.code, caught.value.step) == (130, 10)
    assert caught.value.checkpoint == checkpoints(config.run.path)[-1]
    torch.manual_seed(99)  # another process would start from other random numbers
    halves = pretrain(config)
    assert rows_without_times(halves.metrics) == rows_without_times(whole.metrics)
    one, two = (load_file(result.checkpoint / "model.safetensors") for result in (whole, halves))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_crash_goes_on_from_the_newest_checkpoint(recipe, monkeypatch):
    whole = pretrain(recipe(*TWENTY, "run.name=whole"))
    config = recipe(*TWENTY, "run.name=crashed")
    write = Journal.step

    def step_and_crash(self, row, *args):
        write(self, row, *args)
        if row["step"] == 13:
            raise RuntimeError("power cut")

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "step", step_and_crash)
        with pytest.raises(RuntimeError, match="power cut"):
            pretrain(config)
    metrics = config.run.path / "metrics.jsonl"
    assert read_rows(metrics)[-1]["step"] == 13
    resumed = pretrain(config)
    assert rows_without_times(metrics) == rows_without_times(whole.metrics)
    one, two = (load_file(result.checkpoint / "model.safetensors") for result in (whole, resumed))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_sigterm_exits_with_143_and_handlers_are_put_back(recipe, monkeypatch):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    interrupt_at(monkeypatch, 2, signal.SIGTERM)
    with pytest.raises(SystemExit) as caught:
        pretrain(recipe())
    assert caught.value.code == 143
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_sigusr1_stops_a_run_too(recipe, monkeypatch):
    interrupt_at(monkeypatch, 2, signal.SIGUSR1)
    with pytest.raises(RunInterrupted) as caught:
        pretrain(recipe())
    assert (caught.value.code, caught.value.step) == (138, 2)


def test_a_signal_that_comes_twice_in_a_moment_is_one(recipe, monkeypatch):
    interrupt_at(monkeypatch, 2, times=2)
    with pytest.raises(RunInterrupted):
        pretrain(recipe())


def test_a_second_ctrl_c_leaves_at_once(recipe, monkeypatch):
    monkeypatch.setattr(signals, "AGAIN", -1.0)
    interrupt_at(monkeypatch, 2, times=2)
    config = recipe()
    with pytest.raises(KeyboardInterrupt):
        pretrain(config)
    assert checkpoints(config.run.path) == []


def test_a_finished_run_says_so_and_returns_its_result(recipe, capsys):
    config = recipe("validation.at_start=true")
    first = pretrain(config)
    stamp = (first.checkpoint / "model.safetensors").stat().st_mtime_ns
    capsys.readouterr()
    assert pretrain(config) == first
    assert "finished" in capsys.readouterr().out
    assert (first.checkpoint / "model.safetensors").stat().st_mtime_ns == stamp
    with pytest.raises(UserError, match=r"finished[\s\S]*optimizer\.lr: was 0\.01, is now 0\.02"):
        pretrain(recipe("validation.at_start=true", "optimizer.lr=0.02"))


def test_changed_settings_are_refused_and_named(recipe, monkeypatch):
    with monkeypatch.context() as patch:
        interrupt_at(patch, 2)
        with pytest.raises(RunInterrupted):
            pretrain(recipe())
    with pytest.raises(UserError) as caught:
        pretrain(recipe("model.hidden_size=32", "optimizer.betas=[0.8, 0.9]", "training.steps=9", "epsilon.zero=0.7"))
    for text in (
        "model.hidden_size: was 16, is now 32",
        "optimizer.betas",
        "training.steps: was 4, is now 9",
        "epsilon.zero",
    ):
        assert text in str(caught.value)
    harmless = recipe("logging.every=1", "checkpoint.keep=1", "training.micro_batch_size=1", "validation.max_windows=2")
    assert pretrain(harmless).checkpoint.is_dir()


def test_other_data_is_refused(recipe, monkeypatch):
    config = recipe()
    with monkeypatch.context() as patch:
        interrupt_at(patch, 2)
        with pytest.raises(RunInterrupted):
            pretrain(config)
    path = checkpoints(config.run.path)[-1] / STATE / "state.json"
    saved = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(saved | {"data_fingerprint": "0123456789"}), encoding="utf-8")
    seal(path.parent.parent)
    with pytest.raises(UserError, match="the data: its fingerprint was 0123456789"):
        pretrain(config)


def test_resume_modes(recipe):
    with pytest.raises(UserError, match=r"no checkpoint in .*run\.resume=must"):
        pretrain(recipe("run.resume=must"))
    assert not recipe().run.path.exists()
    pretrain(recipe("run.resume=never"))
    with pytest.raises(UserError, match=r"in use and run\.resume=never"):
        pretrain(recipe("run.resume=never"))


NAMES = [f"{STATE}/optimizer.pt", f"{STATE}/rng.pt", f"{STATE}/state.json", "model.safetensors"]


@pytest.mark.parametrize("name", NAMES)
def test_a_damaged_checkpoint_gives_way_to_an_older_one(recipe, name, capsys):
    config = recipe("checkpoint.every=2")
    whole = pretrain(config)
    rows = rows_without_times(whole.metrics)
    weights = {key: x.clone() for key, x in load_file(whole.checkpoint / "model.safetensors").items()}  # else mapped
    shutil.rmtree(whole.checkpoint)
    newest = checkpoints(config.run.path)[-1]
    halve(newest / name)
    again = pretrain(config)
    assert f"{newest} is damaged ({name} does not fit its checksum)" in capsys.readouterr().out
    assert rows_without_times(again.metrics) == rows
    assert all(torch.equal(weights[key], x) for key, x in load_file(again.checkpoint / "model.safetensors").items())


@pytest.mark.parametrize("name", NAMES)
def test_a_checkpoint_of_another_program_is_one_clear_error(recipe, name):
    """Sealed, and yet nothing that can be read."""
    config = recipe()
    pretrain(config)
    shutil.rmtree(config.run.path / "final")
    folder = checkpoints(config.run.path)[-1]
    halve(folder / name)
    seal(folder)
    with pytest.raises(UserError, match="Remove this checkpoint folder"):
        pretrain(config)


def test_a_damaged_final_model_is_made_again(recipe, capsys):
    config = recipe()
    first = pretrain(config)
    before = {name: x.clone() for name, x in load_file(first.checkpoint / "model.safetensors").items()}  # else mapped
    halve(first.checkpoint / "model.safetensors")
    again = pretrain(config)
    assert "final is damaged (model.safetensors does not fit its checksum)" in capsys.readouterr().out
    assert all(torch.equal(before[name], x) for name, x in load_file(again.checkpoint / "model.safetensors").items())
    halve(first.checkpoint / "model.safetensors")
    shutil.rmtree(config.run.path / "checkpoints")
    with pytest.raises(UserError, match="final is damaged, and there is no checkpoint"):
        pretrain(config)


def test_divergence_names_step_and_advice_and_keeps_the_checkpoint(recipe, monkeypatch):
    config = recipe("checkpoint.every=2")
    compute = loop.backward

    def explode(accelerator, model, *args):
        loss = compute(accelerator, model, *args)
        if len(checkpoints(config.run.path)) == 1:
            model.model.embed_tokens.weight.grad[0, 0] = float("nan")
        return loss

    monkeypatch.setattr(loop, "backward", explode)
    with pytest.raises(
        UserError, match=r"Stopped at step 3 of 4.*gradient of model\.embed_tokens\.weight.*step-00000002"
    ):
        pretrain(config)


def test_endless_overflow_stops(recipe, monkeypatch):
    monkeypatch.setattr(loop, "optimizer_step", lambda *_: StepResult(1.0, float("inf"), skipped=True))
    config = recipe("training.steps=40")
    with pytest.raises(UserError, match=r"step 30 of 40, .*The gradient overflowed fp16 in 30 steps"):
        pretrain(config)
    rows = read_rows(config.run.path / "metrics.jsonl")
    assert [row["grad_norm"] for row in rows] == [None] * 29


def test_a_run_that_only_lacks_its_final_model(recipe):
    config = recipe("validation.at_start=true")
    first = pretrain(config)
    rows = read_rows(first.metrics)
    shutil.rmtree(first.checkpoint)
    assert pretrain(config) == first
    assert read_rows(first.metrics) == rows


def test_samples_do_not_change_the_training(recipe):
    plain = pretrain(recipe("run.name=plain"))
    wanted = "{every: 2, prompts: ['The sea', ''], max_new_tokens: 5}"
    talking = pretrain(recipe("run.name=talking", f"logging.samples={wanted}"))
    assert rows_without_times(talking.metrics) == rows_without_times(plain.metrics)
    samples = read_rows(talking.run_folder / "samples.jsonl")
    assert [(row["step"], row["prompt"]) for row in samples] == [(2, "The sea"), (2, ""), (4, "The sea"), (4, "")]
    assert all(row["text"].startswith(row["prompt"]) and len(row["text"]) > len(row["prompt"]) for row in samples)


def test_a_step_must_be_dealt_out_evenly(recipe):
    assert micro_batch_size(recipe("training.batch_size=12"), processes=3) == 4
    assert micro_batch_size(recipe("training.batch_size=12", "training.micro_batch_size=2"), processes=3) == 2
    with pytest.raises(
        UserError, match=r"batch_size=7 cannot be dealt out evenly: it must be a multiple of 2 processes\."
    ):
        micro_batch_size(recipe("training.batch_size=7"), processes=2)
    with pytest.raises(UserError, match=r"a multiple of 2 processes x 4 \(training\.micro_batch_size\)"):
        micro_batch_size(recipe("training.batch_size=12", "training.micro_batch_size=4"), processes=2)


def test_data_without_a_validation_split(recipe, tmp_path):
    (tmp_path / "text.txt").write_text("one two three four five. " * 200, encoding="utf-8")
    source = f"{{path: {tmp_path / 'text.txt'}}}"
    settings = f"{{sources: [{source}], output: {tmp_path / 'data'}, vocab_size: 270, validation: {{share: 0}}}}"
    result = pretrain(recipe("data.folder=null", f"data.prepare={settings}", "validation.at_start=true"))
    assert result.validation == {}
    assert len(read_rows(result.metrics)) == 4


@pytest.mark.parametrize("kind", ["tokens=150", "epochs=0.01"])
def test_other_lengths(recipe, kind):
    result = pretrain(recipe("training.steps=null", f"training.{kind}"))
    last = [row for row in read_rows(result.metrics) if "bits_per_byte" not in row][-1]
    if kind.startswith("tokens"):
        assert last["tokens"] == 192  # 150 rounded up to steps of 64
    else:
        assert last["step"] >= 1


def test_bf16_and_gradient_checkpointing(recipe):
    plain = read_rows(pretrain(recipe("run.name=plain")).metrics)
    saving = read_rows(pretrain(recipe("run.name=saving", "training.gradient_checkpointing=true")).metrics)
    mixed = read_rows(
        pretrain(recipe("run.name=mixed", "training.mixed_precision=bf16", "training.deterministic=true")).metrics
    )
    for one, two, three in zip(plain, saving, mixed, strict=True):
        assert two["loss"] == pytest.approx(one["loss"], abs=1e-5)
        assert three["loss"] == pytest.approx(one["loss"], abs=0.05)
        assert three["loss"] != one["loss"]
    assert not torch.are_deterministic_algorithms_enabled()


def test_fp16_on_a_cpu_is_refused(recipe):
    with pytest.raises(UserError, match=r"training\.mixed_precision='fp16' does not work here"):
        pretrain(recipe("training.mixed_precision=fp16"))


def test_a_missing_tracker_names_the_extra(recipe, monkeypatch):
    monkeypatch.setattr("hybridlm.training.session.get_available_trackers", list)
    with pytest.raises(UserError, match=r"names wandb, which is not installed.*'\.\[track\]'"):
        pretrain(recipe("logging.trackers=[wandb]"))


def test_a_run_folder_that_cannot_be_made(recipe, tmp_path, monkeypatch):
    """Said before the data is prepared; nothing is left of the attempt."""
    monkeypatch.setattr("hybridlm.training.loop.open_data", lambda *_: pytest.fail("went on"))
    (tmp_path / "link").symlink_to("/proc/version/nowhere")  # a folder cannot be made there, not even by root
    for folder in ("/proc/nowhere", tmp_path / "link" / "runs"):
        with pytest.raises(UserError, match=r"run folder .*/test: it cannot be written \(.*Choose another run.folder"):
            pretrain(recipe(f"run.folder={folder}"))
    assert [path.name for path in tmp_path.iterdir()] == ["link"]


def test_a_run_folder_that_becomes_unwritable(recipe, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("hybridlm.training.loop.replace_file", full)
    with pytest.raises(UserError, match=r"runs/test: it cannot be written \(No space left on device\)"):
        pretrain(recipe())


def test_a_run_folder_that_is_a_file(recipe, tmp_path):
    (tmp_path / "taken").write_text("x", encoding="utf-8")
    with pytest.raises(UserError, match="taken is a file"):
        pretrain(recipe(f"run.folder={tmp_path / 'taken'}"))
