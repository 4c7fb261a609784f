"""Results: whole files or none, pictures, the section of a page."""

import json
import os
import runpy
import sys
from pathlib import Path

import pytest
import torch

from hybridlm import ops
from hybridlm.bench import page, plots, results
from hybridlm.bench.operations import DIRECTIONS, OPERATIONS
from hybridlm.errors import UserError
from hybridlm.ops import dispatch

CPU = torch.device("cpu")
SCRIPTS = Path(__file__).parents[2] / "scripts"
SIZE = {"width": 256, "layers": 6, "mlp": 704, "vocabulary": 4096}


def entry(kind, device="cpu", quick=False, **settings):
    rows = {"kernels": kernel_rows, "training": training_rows, "generation": generation_rows}[kind]()
    machine = {"device": "a machine", "kind": device, "cores": 2, "threads": 2, "torch": "2.13.0", "triton": "3.9.0"}
    machine |= {"transformers": "5.23.0", "commit": "abc", "date": "2030-01-02"}
    settings = {"quick": quick, "parameters": 6e6, "tokens": 64, **settings}
    settings["command"] = f"python scripts/bench_{kind}.py"
    sizes = [{**SIZE, "family": name, "parameters": n} for name, n in (("rglru bmru", 5_900_000), ("Llama", 6_100_000))]
    tail = {"sizes": sizes} if kind != "kernels" else {"absent": {}, "skipped": [], "refused": []}
    return {"kind": kind, "machine": machine, "settings": {"dtype": "float32", **settings}, "rows": rows, **tail}


def kernel_rows():
    figures = {"ms": 1.0, "gb_s": 2.0, "times_pure": 3.25, "best_pure": "torch", "copy_gb_s": 9, "fresh_copy_gb_s": 8}
    return [
        {"operation": name, "direction": direction, "shape": [8, 4, size], "way": way, "of_copy": share, **figures}
        | {"past_cache": size > 4}
        for name in OPERATIONS
        for direction in DIRECTIONS
        for size in (4, 512)
        for way, share in (("cpu", 0.75), ("torch", 0.25))
    ]


def training_rows():
    figures = {"tokens_per_second": 2345.6, "share_of_ceiling": 0.765, "ceiling_tokens_per_second": 3000.0}
    figures |= {"memory_bytes": 2**30, "rounds": 3, "precision": "fp32"}
    rows = [{"model": "rglru bmru", "length": length, **figures} for length in (512, 2048)]
    rows.append({"model": "Llama", "length": 512, **figures, "tokens_per_second": 1234.5})
    return [*rows, {"model": "Llama", "length": 2048, "precision": "fp32", "problem": "over the limit of 9 s"}]


def generation_rows():
    figures = {"tokens_per_second": 210.4, "generate_tokens_per_second": 190.6, "overhead_microseconds_per_layer": 99.9}
    figures |= {"memory_bytes": 2**26, "cache_bytes": 2**12, "rounds": 3}
    return [{"model": m, "position": p, **figures} for m in ("rglru bmru", "Llama") for p in (16, 512)]


@pytest.mark.parametrize("kind", results.KINDS)
def test_a_record_is_written_with_its_picture_and_read_again(kind, tmp_path):
    out = results.check_out(tmp_path / "new" / f"{kind}.json")
    lines = results.keep(entry(kind), out)
    assert lines == [f"Results: {out}", f"Picture: {out.with_suffix('.png')}"]
    assert sorted(path.name for path in out.parent.iterdir()) == [f"{kind}.json", f"{kind}.png"]
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert results.load(out) == entry(kind)


def drawn(kind):
    """The figure of a record."""
    plt = plots._pyplot()
    figure = getattr(plots, f"_{kind}")(plt, entry(kind))
    plt.close(figure)
    return figure


def test_pictures_show_what_was_measured():
    first = drawn("kernels").axes[0]
    bars = {container.get_label(): [bar.get_height() for bar in container] for container in first.containers}
    assert bars == {"cpu": [0.75, 0.75], "torch": [0.25, 0.25]}
    left, right = drawn("training").axes
    lines = {line.get_label(): line.get_xydata().tolist() for line in left.lines}
    assert lines["rglru bmru (hybridlm)"] == [[512, 2345.6], [2048, 2345.6]]
    assert lines["Llama (transformers)"] == [[512, 1234.5]]
    assert lines["ceiling: matrix products alone"] == [[512, 3000], [2048, 3000]]
    assert [line.get_ydata().tolist() for line in right.lines] == [[1024, 1024], [1024]]
    values = [[line.get_ydata().tolist() for line in axis.lines] for axis in drawn("generation").axes]
    assert values == [[[210.4] * 2] * 2, [[64] * 2] * 2, [[4] * 2] * 2]


def test_without_matplotlib_the_figures_are_kept(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    lines = results.keep(entry("training"), tmp_path / "a.json")
    assert lines[0].startswith("Results: ")
    assert lines[1].startswith("No picture: ")
    assert "matplotlib" in lines[1]
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    out = tmp_path / "a.json"
    out.write_text("old")

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        results.keep(entry("training"), out)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a.json": "old"}


def test_paths_that_cannot_be_written_are_refused_first(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.json").mkdir()
    refused = {"a.txt": "must end in .json", "file/a.json": "cannot be written", "folder.json": "is a folder"}
    for out, message in refused.items():
        with pytest.raises(UserError, match=message):
            results.check_out(tmp_path / out)
    assert results.check_out(tmp_path / "new" / "deep" / "a.json") == tmp_path / "new" / "deep" / "a.json"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder.json"]  # nothing is left of the trial


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="no /proc")
def test_a_folder_that_looks_writable_and_is_not_is_refused():
    with pytest.raises(UserError, match="cannot be written"):
        results.check_out("/proc/a.json")


def test_a_place_that_is_gone_behind_the_work_is_no_traceback(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written any more"):
        results.keep(entry("training"), tmp_path / "file" / "a.json")


def test_what_is_no_record_is_refused(tmp_path):
    path = tmp_path / "a.json"
    for text, message in (("{", "no JSON"), ("[]", "not written by a benchmark"), ('{"kind": "x"}', "not written")):
        path.write_text(text)
        with pytest.raises(UserError, match=message):
            results.load(path)
    with pytest.raises(UserError, match="cannot be read"):
        results.load(tmp_path / "none.json")
    with pytest.raises(UserError, match="there are none"):
        page.read(tmp_path / "none")
    with pytest.raises(UserError, match=r"a\.json: is a file\. Give the folder"):
        page.read(path)
    path.write_text(json.dumps(entry("training", quick=True)))
    with pytest.raises(UserError, match="of a --quick run"):
        page.read(tmp_path)


def test_where_results_go(tmp_path, monkeypatch):
    script, usual = str(SCRIPTS / "bench_x.py"), ("training", "cpu", "fp32")
    monkeypatch.chdir(SCRIPTS.parent)
    assert results.default_out(script, *usual, False) == Path("scripts/results/training_cpu_fp32.json")
    assert results.default_out(script, *usual, True).parent == Path("runs/bench")
    with ops.using("torch"):
        assert results.default_out(script, *usual, False).name == "training_cpu_fp32_torch.json"
        assert results.default_out(script, "kernels", "cpu", "float32", False).name == "kernels_cpu_float32.json"
    monkeypatch.chdir(tmp_path)
    assert results.default_out(script, *usual, False).resolve() == SCRIPTS / "results" / "training_cpu_fp32.json"


def test_the_command_says_which_path_was_forced(monkeypatch):
    monkeypatch.setattr(dispatch, "_from_environment", "torch")
    assert results.command("x/bench_training.py", []) == "HYBRIDLM_SCAN=torch python scripts/bench_training.py"
    monkeypatch.setattr(dispatch, "_from_environment", "banana")
    with pytest.raises(UserError, match="='banana': there is no such path"):
        results.command("x/bench_training.py", [])


@pytest.mark.parametrize("kind", ["training", "generation"])
def test_a_page_says_where_a_path_was_forced(kind, tmp_path):
    record = entry(kind)
    for row in record["rows"]:
        row["forced"] = "torch" if row["model"] == "rglru bmru" else None
    (tmp_path / "a.json").write_text(json.dumps(record))
    assert "**the scans forced to the path `torch`**:" in page.section(page.read(tmp_path))
    assert "scans forced to the path torch" in plots._where(record)
    (tmp_path / "a.json").write_text(json.dumps(entry(kind)))
    assert "forced" not in page.section(page.read(tmp_path))


def test_the_machine_and_the_command():
    machine = results.machine(CPU)
    assert (machine["kind"], machine["threads"]) == ("cpu", torch.get_num_threads())
    assert machine["torch"].startswith(torch.__version__.partition("+")[0])
    assert machine["device"]
    assert machine["date"][:2] == "20"
    assert not [value for value in machine.values() if str(Path.home()) in str(value)]
    words = ["--models", "rglru bmru", "--out", "/a/b.json", "--threads", "2", "--out=/c.json"]
    assert results.command("/x/scripts/bench_training.py", words) == (
        "python scripts/bench_training.py --models 'rglru bmru' --threads 2"
    )


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "results"
    for kind in results.KINDS:
        results.keep(entry(kind), results.check_out(folder / f"{kind}.json"))
    return folder


def test_the_section(folder):
    text = page.section(page.read(folder), folder.parent)
    assert "**Not measured yet on a GPU: the scans by themselves, training, generation.**" in text
    assert "Not measured yet on a CPU" not in text
    assert "| fp32, T = | 512 | 2,048 |" in text
    assert "| **hybridlm `rglru bmru`** | 2,346 (0.77) | 2,346 (0.77) |" in text
    assert "| Llama | 1,234 (0.77) | – <sup>1</sup> |" in text
    assert "1. over the limit of 9 s" in text
    assert "| **hybridlm `rglru bmru`** | 210 / 191 / 64 | 210 / 191 / 64 | 100 µs |" in text
    assert "5.90 to 6.10 million parameters, 4,096 tokens of vocabulary" in text
    assert "| lru, forward + backward | 0.75\\*, 3.2× | 0.75, 3.2× |" in text
    where = "on a machine, 2 of 2 cores, torch 2.13.0, transformers 5.23.0, commit abc, 2030-01-02."
    assert f"`python scripts/bench_training.py` {where}" in text
    assert "![training](results/training.png)" in text


def test_figures_of_a_gpu_are_no_longer_missing(folder):
    (folder / "kernels-cuda.json").write_text(json.dumps(entry("kernels", "cuda")))
    text = page.section(page.read(folder), folder.parent)
    assert "**Not measured yet on a GPU: training, generation.**" in text
    assert "on a machine, torch 2.13.0, transformers 5.23.0, triton 3.9.0, commit abc" in text


def run(script, monkeypatch, *words):
    """What a script's `main` returns."""
    monkeypatch.setattr(sys, "argv", [script, *map(str, words)])
    return runpy.run_path(str(SCRIPTS / script))["main"]()


def test_the_script_fills_a_page(folder, monkeypatch, capsys):
    readme = folder.parent / "README.md"
    readme.write_text("# A\n\n<!-- performance -->\nold\n<!-- /performance -->\n\nend\n")
    (folder / "training.png").unlink()
    assert run("bench_report.py", monkeypatch, "--results", folder, "--write", readme) == 0
    text = page.section(page.read(folder), folder.parent)
    assert "![training](results/training.png)" in text
    assert readme.read_text() == f"# A\n\n<!-- performance -->\n{text}\n<!-- /performance -->\n\nend\n"
    (folder / "training.png").unlink()
    readme.write_text("no markers")
    assert run("bench_report.py", monkeypatch, "--results", folder, "--write", readme) == 2
    assert "put in one of each" in capsys.readouterr().err
    assert run("bench_report.py", monkeypatch, "--results", folder, "--write", folder / "none.md") == 2
    assert "none.md: cannot be read" in capsys.readouterr().err
    assert not (folder / "training.png").exists()  # the page comes first


def test_the_script_finds_the_results_from_any_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run("bench_report.py", monkeypatch) == 0
    assert "Training, tokens per second" in capsys.readouterr().out
    assert run("bench_report.py", monkeypatch, "--write", "/none.md") == 2
    assert capsys.readouterr().err.startswith("error: /none.md: cannot be read")


SCRIPT_WORDS = {
    "bench_kernels.py": ["--rounds", 1],
    "bench_training.py": ["--rounds", 1, "--models", "rglru bmru", "Llama", "--lengths", 16, "--tokens", 16],
    "bench_generation.py": ["--rounds", 1, "--models", "rglru bmru", "Llama", "--positions", 16],
}


@pytest.mark.parametrize("script", SCRIPT_WORDS)
def test_the_scripts_measure_print_and_write(script, tmp_path, monkeypatch, capsys):
    out = tmp_path / "a.json"
    threads = ["--threads", torch.get_num_threads()]
    assert run(script, monkeypatch, "--quick", *SCRIPT_WORDS[script], *threads, "--out", out) == 0
    assert f"Results: {out}\nPicture: {out.with_suffix('.png')}" in capsys.readouterr().out
    record = results.load(out)
    assert record["settings"]["quick"] is True
    assert "--out" not in record["settings"]["command"]
    assert record["rows"]


def test_a_run_that_goes_on_leaves_a_record_of_which_no_page_is_made(tmp_path):
    words = results.keep_unfinished(entry("kernels"), tmp_path / "kernels.json")
    assert str(tmp_path / "kernels.json") in words
    assert results.load(tmp_path / "kernels.json")["rows"] == kernel_rows()
    with pytest.raises(UserError, match="did not come to its end"):
        page.read(tmp_path)


def interrupt(*_, **__):
    raise KeyboardInterrupt


@pytest.mark.parametrize("script", SCRIPT_WORDS)
def test_interrupted_scripts_and_those_misused_write_nothing(script, tmp_path, monkeypatch, capsys):
    kind = script[len("bench_") : -len(".py")]
    monkeypatch.setattr(f"hybridlm.bench.{kind}.measure", interrupt)
    assert run(script, monkeypatch, "--quick", "--out", tmp_path / "a.json") == 130
    assert capsys.readouterr().err == "interrupted: nothing was written\n"
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    model_words = [
        (["--models", "GPT"], "error: models='GPT': there is no such model"),
        (["--tokens", 0], "error: tokens=0: must be at least 1."),
        (["--parameters", 10], "error: parameters=10: no rglru bmru with"),
        (["--parameters", -5], "error: parameters=-5: must be at least 1."),
        (["--parameters", "6M"], "error: parameters='6M': must be a number such as 6000000 or 6e6."),
        (["--parameters", "inf"], "error: parameters='inf': must be a number"),
    ]
    for words, message in (
        (["--out", "a.txt"], "error: out='a.txt': must end in .json"),
        (["--threads", 0], "error: threads=0: must be at least 1."),
        *([] if torch.cuda.is_available() else [(["--device", "cuda"], "error: device='cuda': torch sees no CUDA")]),
        *([(["--shapes", "0x3x4"], "error: shape=0x3x4: B, T and N must")] if kind == "kernels" else model_words),
    ):
        assert run(script, monkeypatch, "--quick", *words) == 2
        assert capsys.readouterr().err.startswith(message)
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_kernel_is_the_exit_code(tmp_path, monkeypatch, capsys):
    refused = [{"way": "cpu", "why": "it is off"}]
    wrong = {"rows": [], "absent": {}, "skipped": [], "refused": refused, "copy_bytes": 1, "cache_bytes": 1}
    monkeypatch.setattr("hybridlm.bench.kernels.measure", lambda *_, **__: wrong)
    assert run("bench_kernels.py", monkeypatch, "--quick", "--out", tmp_path / "a.json") == 1
    assert "WRONG, not timed: cpu: it is off" in capsys.readouterr().out
    assert results.load(tmp_path / "a.json")["refused"] == refused
