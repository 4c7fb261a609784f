"""A client of a Hub: a process that was told its HF_ENDPOINT before huggingface_hub was imported, for many requests.

    client = HubClient(hub.url, tmp_path)
    done = client.command("push", checkpoint, "owner/name")   # the hybridlm command: done.code, done.out, done.err
    client.push_model(folder, "owner/name", private=True)     # model.push_to_hub

`python hub_client.py` is that process. It reads a line of JSON for each request and answers with one. The seconds that
the client waits before it tries again are not spent, but counted (done.waited).
"""

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass
class Done:
    code: int
    out: str
    err: str
    waited: float


class HubClient:
    def __init__(self, url, folder):
        self.temporary = folder / "temporary"
        self.temporary.mkdir()
        own = {"HF_ENDPOINT": url, "HF_HOME": str(folder / "home"), "TMPDIR": str(self.temporary)}
        own |= {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        own["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
        left_out = ("HF_TOKEN", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "TRANSFORMERS_OFFLINE")
        environment = {name: value for name, value in os.environ.items() if name not in left_out}
        self.log = (folder / "client.log").open("w+")
        self.process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            env=environment | own,
            cwd=folder,
        )

    def command(self, *argv, **options) -> Done:
        self.begin(*argv, **options)
        return self.finish()

    def begin(self, *argv, token="hf_owner", room=None):
        """room: bytes that a file may have."""
        self._ask(do="command", argv=[str(word) for word in argv], token=token, room=room)

    def push_model(self, folder, repository, *, token="hf_owner", **options) -> Done:
        self._ask(do="push_model", folder=str(folder), repository=repository, token=token, options=options)
        return self.finish()

    def finish(self) -> Done:
        answer = self.process.stdout.readline()
        assert answer, Path(self.log.name).read_text()
        return Done(**json.loads(answer))

    def press_ctrl_c(self):
        self.process.send_signal(signal.SIGINT)

    def close(self):
        self.process.stdin.close()
        self.process.wait(60)
        self.process.stdout.close()
        self.log.close()

    def _ask(self, **request):
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()


def main():
    import contextlib
    import io
    import resource
    import types

    import huggingface_hub.utils._http as http
    from transformers import AutoModelForCausalLM

    from hybridlm.cli import main as command

    waited = []
    http.time = types.SimpleNamespace(sleep=waited.append)

    def push_model(folder, repository, options):
        try:
            AutoModelForCausalLM.from_pretrained(folder).push_to_hub(repository, **options)
        except Exception as error:  # its caller's to judge
            print(repr(error), file=sys.stderr)
            return 1
        return 0

    def run(request):
        if request["do"] == "push_model":
            return push_model(request["folder"], request["repository"], request["options"])
        limit = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit[0] if request["room"] is None else request["room"], limit[1]))
        try:
            return command(request["argv"])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)

    for line in sys.stdin:
        request = json.loads(line)
        os.environ.pop("HF_TOKEN", None)
        if request["token"] is not None:
            os.environ["HF_TOKEN"] = request["token"]
        waited.clear()
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = run(request)
        answer = {"code": code, "out": out.getvalue(), "err": err.getvalue(), "waited": sum(waited)}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
