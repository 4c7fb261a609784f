"""A dry run: says what would be done, and does nothing."""

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch

from hybridlm import cli
from hybridlm.data.loader import Windows
from hybridlm.data.prepare import PrepareConfig, prepare
from hybridlm.data.shards import TokenShards
from hybridlm.errors import UserError
from hybridlm.training import dryrun, peaks
from hybridlm.training.config import load_config
from hybridlm.training.dryrun import dry_run
from hybridlm.training.dryrun_text import dry_run_text
from hybridlm.training.loop import pretrain
from hybridlm.training.metrics import read_rows
from hybridlm.training.peaks import Utilisation, peak_flops

UNPREPARED = [
    "data={prepare: {sources: [{path: unread.txt}], output: never, vocab_size: 400}, sequence_length: 16}",
    "model={pattern: rglru bmru attention, hidden_size: 16, num_attention_heads: 2}",
    "training={epochs: 2, batch_size: 4}",
]
WITH_TOKENIZER = "data.prepare={{tokenizer: {}, sources: [{{path: unread.txt}}], output: y}}"


@pytest.fixture(autouse=True)
def _short(monkeypatch, tmp_path):
    monkeypatch.setattr(dryrun, "MOMENT", 0.01)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "unread.txt").write_bytes(b"\0")  # which cannot be read as text


def files(folder):
    return sorted(path.relative_to(folder) for path in Path(folder).rglob("*"))


def test_it_makes_nothing_and_reads_no_source(tmp_path):
    run = dry_run(load_config(None, UNPREPARED))
    assert files(tmp_path) == [Path("unread.txt")]
    assert (run.steps, run.data.tokens, run.total_flops, run.least_seconds) == (None, None, None, None)
    assert run.epochs == 2
    assert run.data.vocab_size == 400
    text = dry_run_text(run)
    assert "unknown until it is prepared" in text
    assert "steps unknown until the data is prepared" in text
    assert "400 (data.prepare.vocab_size, unless the text is too short)" in text


def test_prepared_data_is_looked_at(recipe, data_folder):
    config = recipe("training={epochs: 1.5, batch_size: 4}", "training.seed=3")
    run = dry_run(config)
    shards = TokenShards(data_folder, "train")
    windows = Windows(shards, 16).per_epoch
    assert run.data.tokens == shards.n_tokens
    assert run.steps == -(-3 * windows // 8)
    assert run.epochs == pytest.approx(1.5, abs=4 / windows)
    assert f"{shards.n_tokens:,} training tokens" in dry_run_text(run)


def test_its_numbers_are_those_of_the_run(recipe, capsys):
    config = recipe("training.steps=3")
    run = dry_run(config)
    assert not config.run.path.exists()
    result = pretrain(config)
    said = capsys.readouterr().out
    assert f"parameters: {run.parameters:,} ({run.parameters - run.embedding:,} without embeddings" in said
    assert run.steps == 3
    assert read_rows(result.metrics)[-2]["tokens"] == run.steps * run.tokens_per_step
    assert f"scan:       {run.paths['scan']}" in said
    assert "parallel:   1 process\n" in said
    weights = (result.checkpoint / "model.safetensors").stat().st_size
    state = next(iter(config.run.path.glob("checkpoints/*"))) / "training_state" / "optimizer.pt"
    assert run.checkpoint_bytes == pytest.approx(weights + state.stat().st_size, rel=0.25)  # small: headers count
    assert "holds a finished run" in dry_run_text(dry_run(config))


def test_carried_states(recipe):
    """Whole batches an epoch, so that lanes end together; a line of its own; room in the memory and in a checkpoint."""
    more = ("training={epochs: 1, batch_size: 7}", "data.sequence_length=300")
    plain, carried = dry_run(recipe(*more)), dry_run(recipe(*more, "data.carry_state=true"))
    assert plain.data.tokens is not None
    assert carried.steps == -(-plain.data.tokens // (7 * 300))
    assert carried.epochs == 1
    assert "state:           carried from batch to batch, 7 lanes, once epsilon is 0" in dry_run_text(carried)
    assert "state:" not in dry_run_text(plain)
    assert "\nAn epoch has 7 lanes of 5 sequences (1,500 tokens), and the mean document " in dry_run_text(carried)
    assert "lanes of" not in dry_run_text(plain)
    assert carried.checkpoint_bytes == plain.checkpoint_bytes + carried.memory.carried > plain.checkpoint_bytes


def test_layers_add_up(recipe):
    run = dry_run(recipe("model={pattern: (rglru bmru)*2 attention, hidden_size: 16, num_attention_heads: 2}"))
    assert [layer.block for layer in run.layers] == ["rglru", "bmru"] * 2 + ["attention"]
    assert sum(layer.mixer + layer.mlp + layer.norms for layer in run.layers) + run.embedding + 16 == run.parameters
    assert run.embedding == run.data.vocab_size * 16
    text = dry_run_text(run)
    assert "2 x rglru" in text
    assert "1 x attention" in text
    assert run.paths["attention"] == "sdpa"


def test_an_output_projection_of_its_own_is_an_embedding_too(recipe):
    tied, own = (dry_run(recipe(f"model.tie_word_embeddings={value}")) for value in ("true", "false"))
    assert own.embedding == 2 * tied.embedding
    assert own.parameters - own.embedding == tied.parameters - tied.embedding


def test_options_of_training_are_in_the_memory(recipe):
    plain, average, muon = (
        dry_run(recipe(*more)) for more in ([], ["training.ema_decay=0.99"], ["optimizer.kind=muon"])
    )
    assert average.memory.parts["average"] > 0.9 * plain.memory.parts["weights"]
    assert average.checkpoint_bytes > plain.checkpoint_bytes
    assert plain.memory.parts["optimizer"] / 2 < muon.memory.parts["optimizer"] < plain.memory.parts["optimizer"]


@pytest.mark.parametrize(
    ("overrides", "disk"),
    [
        (["checkpoint.every=0"], 1),
        (["checkpoint={every: 1, keep: 2}"], 3),
        (["checkpoint={every: 2, keep: 5}"], 2),
        (["checkpoint={every: 1, keep: 1, keep_every: 2}"], 4),
    ],
)
def test_checkpoints_that_exist_at_once(recipe, overrides, disk):
    run = dry_run(recipe(*overrides))
    model = run.memory.parts["weights"]
    assert run.disk_needed - disk * run.checkpoint_bytes == pytest.approx(2 * model, rel=0.1)


def test_another_device_and_more_processes(recipe):
    run = dry_run(recipe("training.mixed_precision=bf16"), device="cuda", processes=2)
    assert (run.processes, run.micro_batch, run.memory.parts["buckets"] > 0) == (2, 2, True)
    if not torch.cuda.is_available():
        assert run.rate is None
        text = dry_run_text(run)
        assert "unknown: there is no cuda device here to measure" in text
        assert run.paths["scan"] == "unknown: there is no cuda device here"


@pytest.mark.parametrize(
    ("parallel", "processes", "words"),
    [
        ("{}", 1, "1 process"),
        ("{kind: fsdp, shard: 8, sequence: 2}", 1, "1 process"),
        ("{}", 4, "4 processes: ddp, 4 places that read rows"),
        ("{kind: fsdp}", 8, "8 processes: fsdp over 8, 8 places that read rows"),
        (
            "{kind: fsdp, sequence: 2}",
            8,
            "8 processes: fsdp over 8, 4 places that read rows, 2 processes share each sequence",
        ),
        (
            "{kind: fsdp, shard: 2, reshard: false}",
            4,
            "4 processes: fsdp over 2, 2 copies of the model, gathered weights are kept until the backward is over, "
            "4 places that read rows",
        ),
        ("{sequence: 4}", 4, "4 processes: ddp, 1 place that reads rows, 4 processes share each sequence"),
    ],
)
def test_how_processes_are_arranged_is_said(recipe, parallel, processes, words):
    run = dry_run(recipe(f"parallel={parallel}", "training.batch_size=8"), processes=processes, device="cpu")
    line = next(line for line in dry_run_text(run).splitlines() if line.startswith("parallel:"))
    assert line.removeprefix("parallel:").strip() == words
    assert ("gathered" in run.memory.parts) == ("fsdp over" in words)


def test_a_shared_sequence_is_dealt_out(recipe):
    run = dry_run(recipe("parallel.sequence=4", "training={batch_size: 4, steps: 1}"), processes=8)
    assert "8 process(es), 2 sequence(s) in a forward of each, 4 tokens of each sequence" in dry_run_text(run)


def test_what_does_not_fit_on_one_gpu_may_on_several(recipe):
    run = dataclasses.replace(dry_run(recipe(), processes=2), device_memory=1000, device_type="cuda")
    assert "training.gradient_checkpointing=true or parallel.kind=fsdp." in dry_run_text(run)
    run.config.parallel.kind = "fsdp"
    assert "training.gradient_checkpointing=true." in dry_run_text(run)


def test_time_is_a_bound_from_a_rate(recipe):
    run = dry_run(recipe())
    assert run.least_seconds == pytest.approx(run.flops.training * 4 * 64 / run.rate)
    assert "products of float32 matrices measured here for a moment" in dry_run_text(run)


def test_what_does_not_fit_is_said(recipe):
    run = dataclasses.replace(dry_run(recipe()), device_memory=1000, disk_free=1000)
    text = dry_run_text(run)
    assert "The run does not fit" in text
    assert "training.gradient_checkpointing=true" in text
    assert "The disk of" in text
    assert "does not fit" not in dry_run_text(dry_run(recipe()))


@pytest.mark.parametrize(
    ("overrides", "options", "says"),
    [
        (["training.mixed_precision=fp16"], {"device": "cpu"}, "fp16 needs a GPU"),
        ([], {"processes": 3}, "cannot be dealt out evenly"),
        (["parallel.sequence=2"], {"processes": 3}, "cannot be dealt out over sequences"),
        (["parallel.sequence=3"], {"processes": 3}, "must be a multiple of parallel.sequence=3"),
        (["parallel={kind: fsdp, shard: 4}"], {"processes": 2}, "parallel.shard=4"),
        (["run.resume=must"], {}, "run.resume=must"),
        (["data.folder=nowhere"], {}, "there is no such folder"),
        ([], {"device": "tpu"}, "must be cpu or cuda"),
    ],
)
def test_what_pretrain_refuses_is_refused(recipe, overrides, options, says):
    with pytest.raises(UserError, match=says):
        dry_run(recipe(*overrides), **options)


def test_a_used_folder_is_refused_or_named(recipe):
    config = recipe("checkpoint.every=2")
    final = pretrain(config).checkpoint
    assert "holds a finished run" in dry_run_text(dry_run(config))
    shutil.rmtree(final)
    shutil.rmtree(config.run.path / "checkpoints" / "step-00000004")
    assert "it would go on from step-00000002" in dry_run_text(dry_run(config))
    config.run.resume = "never"
    with pytest.raises(UserError, match="in use"):
        dry_run(config)
    (config.run.path / "checkpoints" / "step-00000002" / "training_state" / "state.json").unlink()
    config.run.resume = "auto"
    with pytest.raises(UserError, match=r"state\.json cannot be read"):
        dry_run(config)


def test_settings_other_than_those_of_the_run_are_refused_as_the_run_refuses_them(recipe, data_folder, tmp_path):
    final = pretrain(recipe("checkpoint.every=2")).checkpoint
    (tmp_path / "other.txt").write_text("a zebra crossing, vexed by quartz\n\n" * 400, encoding="utf-8")
    other = prepare(
        PrepareConfig(sources=[{"path": "other.txt"}], output="other", vocab_size=270, validation={"share": 0.0}),
        log=lambda _: None,
    )
    changes = [["optimizer.lr=5e-3", "training.seed=3"], ["training.steps=6"], [f"data.folder={other}"]]
    for found in ("is finished", "cannot go on from step 4"):
        for change in changes:
            config = recipe("checkpoint.every=2", *change)
            with pytest.raises(UserError, match=found) as by_run:
                pretrain(config)
            with pytest.raises(UserError) as by_dry_run:
                dry_run(config)
            assert str(by_dry_run.value) == str(by_run.value)
        dry_run(recipe("checkpoint.every=1", "logging.every=1"))  # these may change
        shutil.rmtree(final, ignore_errors=True)


def test_initial_weights_are_looked_at(recipe):
    first = pretrain(recipe("run.name=first")).checkpoint
    text = dry_run_text(dry_run(recipe()))
    assert "random, from training.seed=" in text
    assert f"from {first}" in dry_run_text(dry_run(recipe(f"training.init_from={first}")))
    assert "from some/model: unknown" in dry_run_text(dry_run(recipe("training.init_from=some/model")))
    with pytest.raises(UserError, match="init_from='nothere': there is no such folder"):
        dry_run(recipe("training.init_from=nothere"))
    with pytest.raises(UserError, match="hidden_size: 16 in the checkpoint, 32 in the recipe"):
        dry_run(recipe(f"training.init_from={first}", "model.hidden_size=32"))
    (first / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(UserError, match="is damaged"):
        dry_run(recipe(f"training.init_from={first}"))
    assert "those of the run" in dry_run_text(dry_run(recipe("run.name=first")))


def test_all_paths_that_are_not_there_are_named():
    sources = "data.prepare.sources=[{path: unread.txt}, {path: here.txt}, {path: there/*.txt}]"
    for attempt in (dry_run, pretrain):
        with pytest.raises(UserError, match=r"'here\.txt': there is no such file.*\n.*'there/\*\.txt': no file"):
            attempt(load_config(None, [*UNPREPARED, sources]))
    with pytest.raises(UserError, match="tokenizer='nothere': there is no such folder"):
        dry_run(load_config(None, [*UNPREPARED, WITH_TOKENIZER.format("nothere")]))


def test_a_run_that_goes_on_needs_its_sources_no_more(recipe, tmp_path):
    (tmp_path / "book.txt").write_text("a zebra crossing, vexed by quartz\n\n" * 400, encoding="utf-8")
    data = "data={prepare: {sources: [{path: book.txt}], output: here, vocab_size: 270, %s}, sequence_length: 16}"
    config = recipe(data % "validation: {share: 0.0}")
    pretrain(config)
    (tmp_path / "book.txt").unlink()
    for attempt in (dry_run, pretrain):
        attempt(config)
        for changed in (recipe(data % "seed: 5"), recipe(data % "validation: {share: 0.0}", "run.name=another")):
            with pytest.raises(UserError, match=r"'book\.txt': there is no such file"):
                attempt(changed)


def test_a_tokenizer_that_is_not_here_is_not_downloaded():
    run = dry_run(load_config(None, [*UNPREPARED, WITH_TOKENIZER.format("some/where")]))
    assert run.data.vocab_size == 32000
    assert "assumed: the tokenizer some/where is not on this machine" in dry_run_text(run)


def test_the_command(tmp_path, capsys, monkeypatch):
    (tmp_path / "mine.yaml").write_text("\n".join(f"{line.replace('=', ': ', 1)}" for line in UNPREPARED))
    before = files(tmp_path)
    assert cli.main(["pretrain", "--config", "mine.yaml", "--dry-run", "training.batch_size=8"]) == 0
    assert "mine: rglru bmru attention, width 16" in capsys.readouterr().out
    assert files(tmp_path) == before
    assert cli.main(["pretrain", "--config", "mine.yaml", "--dry-run", "training.batch_sise=8", "optimizer.lr=-1"]) == 2
    problems = capsys.readouterr().err
    assert "2 problems" in problems
    assert "did you mean 'batch_size'" in problems
    assert cli.main(["pretrain", "--config", "mine.yaml", "--processes", "2"]) == 2
    assert "add --dry-run" in capsys.readouterr().err
    assert cli.main(["pretrain", "--config", "mine.yaml", "--dry-run", "--processes", "0"]) == 2
    monkeypatch.setenv("RANK", "1")
    capsys.readouterr()
    assert cli.main(["pretrain", "--config", "mine.yaml", "--dry-run"]) == 0
    assert capsys.readouterr().out == ""


def test_peaks_are_known_by_name_and_precision():
    assert peak_flops("NVIDIA H100 80GB HBM3", torch.bfloat16) == 989e12
    assert peak_flops("Tesla V100-SXM2-32GB", torch.bfloat16) is None
    assert peak_flops("NVIDIA H100 80GB HBM3", torch.float32) is None
    assert peak_flops("NVIDIA H100 80GB HBM3 MIG 1g.10gb", torch.bfloat16) is None
    assert peaks.device_peak(torch.device("cpu"), "bf16") is None


def test_mfu_is_logged_where_the_peak_is_known(recipe, monkeypatch):
    rows = read_rows(pretrain(recipe("run.name=unknown")).metrics)
    assert all("mfu" not in row for row in rows)
    monkeypatch.setattr(peaks, "device_peak", lambda *_: 1e12)
    config = recipe()
    rows = [row for row in read_rows(pretrain(config).metrics) if "mfu" in row]
    assert len(rows) == 4
    flops = dry_run(config).flops.training
    assert [row["mfu"] for row in rows] == pytest.approx([flops * row["tokens_per_second"] / 1e12 for row in rows])


def test_mfu_is_a_share_of_all_devices(recipe, monkeypatch):
    monkeypatch.setattr(peaks, "device_peak", lambda *_: 1e9)
    config = recipe()
    run = dry_run(config)
    from hybridlm import HybridLMForCausalLM

    with torch.device("meta"):
        model = HybridLMForCausalLM(run.model_config)
    one, two = (Utilisation(model, config, torch.device("cpu"), count).row(2.0)["mfu"] for count in (1, 2))
    assert one == pytest.approx(run.flops.training * run.tokens_per_step / 2.0 / 1e9)
    assert two == one / 2
