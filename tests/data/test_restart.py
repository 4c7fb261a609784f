"""A preparation that is killed goes on where it was, to the same bytes, and leaves nothing behind."""

import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import chdir
from pathlib import Path

import pytest
from launching import launch
from preparation import config, content, write_corpus

from hybridlm.data import folder, prepare, workers
from hybridlm.errors import UserError

HERE = Path(__file__).parent


def quiet(_):
    pass


@pytest.fixture(scope="module")
def wanted(tmp_path_factory):
    """Content of the folder of a preparation that nothing disturbed."""
    place = tmp_path_factory.mktemp("undisturbed")
    write_corpus(place)
    with chdir(place):
        return content(prepare(config(), quiet))


@pytest.fixture
def place(tmp_path, monkeypatch):
    """The corpus, in the working folder."""
    write_corpus(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def names(place):
    return sorted(path.name for path in place.iterdir())


def test_killed_at_random_moments(tmp_path, wanted):
    """Half of the kills come at a time, half at one of the calls by which files come to be. Then the folder is replaced
    by another and that one by the first, with kills at each rename. The second of the two folders is there before."""
    for name in ("new", "old"):
        (tmp_path / name).mkdir()
        write_corpus(tmp_path / name)
    with chdir(tmp_path / "old"):
        prepare(config(vocab_size=290), quiet)
    command = [HERE / "preparation.py", "12", tmp_path / "new", tmp_path / "old"]
    done = launch(command, timeout=200)
    assert done.returncode == 0, done.stderr
    kills = [int(count) for count in done.stdout.split()]
    assert kills[::3] == [12, 12]
    assert min(kills[1::3] + kills[2::3]) >= 4  # before and behind the two renames of a replacement
    for name in ("new", "old"):
        assert content(tmp_path / name / "out") == wanted
        assert names(tmp_path / name) == ["book.txt", "lines.jsonl.gz", "out"]


class StopError(Exception):
    pass


def stop_after(monkeypatch, texts):
    """Tokenising fails behind so many documents; returns the list of those that were tokenised."""
    done = []
    tokenize = workers.document_ids

    def some(tokenizer, text):
        if len(done) == texts:
            raise StopError
        done.append(text)
        return tokenize(tokenizer, text)

    monkeypatch.setattr(workers, "document_ids", some)
    monkeypatch.setattr(folder, "_BATCH_TEXTS", 10)
    return done


def test_finished_shards_are_kept_and_not_made_again(place, wanted, monkeypatch):
    log = []
    with monkeypatch.context() as patch:
        stop_after(patch, 400)
        with pytest.raises(StopError):
            prepare(config(), log.append)
    assert "finished shards are kept in" in log[-1]
    assert names(place) == [".out.unfinished", "book.txt", "lines.jsonl.gz"]
    with monkeypatch.context() as patch:
        again = stop_after(patch, 10**6)
        log.clear()
        assert content(prepare(config(), log.append)) == wanted
    assert any("Goes on from" in line for line in log)
    assert 200 < len(again) < 350  # of 600
    assert names(place) == ["book.txt", "lines.jsonl.gz", "out"]


def test_what_was_kept_of_something_else_is_not_taken(place, wanted, monkeypatch):
    with monkeypatch.context() as patch:
        stop_after(patch, 400)
        with pytest.raises(StopError):
            prepare(config(seed=5), quiet)
    log = []
    assert content(prepare(config(), log.append)) == wanted
    assert any("other sources or settings" in line for line in log)


@pytest.mark.parametrize("damage", ["shard", "note", "tokens missing"])
def test_a_damaged_shard_is_made_again(place, wanted, monkeypatch, damage):
    with monkeypatch.context() as patch:
        stop_after(patch, 400)
        with pytest.raises(StopError):
            prepare(config(), quiet)
    work = place / ".out.unfinished"
    if damage == "shard":
        data = bytearray((work / "train-00001.bin").read_bytes())
        data[5] ^= 1
        (work / "train-00001.bin").write_bytes(data)
    elif damage == "note":
        (work / "progress" / "train-00001.json").write_text('{"shard": {')
    else:
        (work / "train-00001.bin").unlink()
    assert content(prepare(config(), quiet)) == wanted


def test_nothing_is_kept_before_the_first_shard(place, monkeypatch):
    stop_after(monkeypatch, 5)
    with pytest.raises(StopError):
        prepare(config(), quiet)
    assert names(place) == ["book.txt", "lines.jsonl.gz"]


def test_a_whole_folder_needs_only_its_name(place, wanted, monkeypatch):
    log = []
    with monkeypatch.context() as patch:
        patch.setattr(folder, "put_in_place", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(UserError, match="No space left on device"):
            prepare(config(), log.append)
    assert "all of it is kept" in log[-1]
    stop_after(monkeypatch, 0)
    assert content(prepare(config(), quiet)) == wanted


def test_sources_that_change_between_the_readings(place, monkeypatch):
    tokenized = folder.tokenized

    def change(*args):
        with (place / "book.txt").open("a") as file:
            file.write("\n\nand one more")
        return tokenized(*args)

    monkeypatch.setattr(folder, "tokenized", change)
    with pytest.raises(UserError, match="they changed while they were read"):
        prepare(config(), quiet)
    assert names(place) == ["book.txt", "lines.jsonl.gz"]


def test_any_number_of_workers_makes_the_same_folder(place, wanted):
    assert content(prepare(config(workers=2), quiet)) == wanted


def test_a_worker_that_dies(place, monkeypatch):
    monkeypatch.setattr(folder, "_BATCH_TEXTS", 1)  # so that there is work left
    monkeypatch.setattr(workers, "_begin", os._exit)  # with an argument that makes it fail
    with pytest.raises(UserError, match="workers=2: a worker process died"):
        prepare(config(workers=2), quiet)
    assert names(place) == ["book.txt", "lines.jsonl.gz"]


class Preparation:
    """One of endless work in a process of its own, which tells its id and begins a session, as a terminal's does."""

    def __init__(self, place, workers):
        (place / "book.txt").write_text("\n\n".join(f"document {i} of many" for i in range(150_000)), encoding="utf-8")
        code = (
            "import os, signal; from pathlib import Path\n"
            "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a background job ignores it
            "os.setsid(); Path('pid').write_text(str(os.getpid()))\n"
            "from hybridlm.data import prepare; from preparation import config\n"
            f"prepare(config(workers={workers}, shard_tokens=20000))"
        )
        self._running = ThreadPoolExecutor(1)
        self.ended = self._running.submit(launch, ["-c", code], cwd=place, timeout=120)
        self._running.shutdown(wait=False)
        notes = place / ".out.unfinished" / "progress"
        wait(lambda: self.ended.done() or (notes.is_dir() and len(list(notes.glob("train-*.json"))) > 2))
        assert not self.ended.done(), self.ended.result().stderr
        self.pid = int((place / "pid").read_text())


def wait(condition):
    for _ in range(2400):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("it never came about")


def children(group):
    """Living processes of a session, by /proc."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[3]) == group and fields[0] != "Z":
                found.append(int(entry.name))
    return found


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc to find processes")
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_workers_end_with_their_reader(place, how):
    process = Preparation(place, 2)
    assert len(children(process.pid)) >= 3
    if how == signal.SIGINT:
        os.killpg(process.pid, how)  # as a terminal does it
    else:
        os.kill(process.pid, how)
    done = process.ended.result(timeout=60)
    wait(lambda: not children(process.pid))
    assert done.returncode != 0
    assert not (place / "out").exists()
    assert (place / ".out.unfinished" / "progress").exists()
    if how == signal.SIGINT:
        assert done.stderr.count("Traceback") == done.stderr.count("KeyboardInterrupt") == 1


def test_two_preparations_of_one_folder(place, wanted, monkeypatch):
    """The second one waits for the first, and finds the folder made."""
    entered, go, log = threading.Event(), threading.Event(), []
    fill = folder._fill

    def slow(*args):
        entered.set()
        assert go.wait(60)
        fill(*args)

    monkeypatch.setattr(folder, "_fill", slow)

    def second(line):
        log.append(line)
        go.set()

    first = threading.Thread(target=prepare, args=(config(), quiet))
    first.start()
    assert entered.wait(60)
    assert content(prepare(config(), second)) == wanted
    first.join()
    assert "Another process is making" in log[0]
    assert "up to date" in log[1]
    assert names(place) == ["book.txt", "lines.jsonl.gz", "out"]
