"""A Hub for tests: what huggingface_hub's client asks of one, spoken over HTTP by threads of this process.

    with HubServer() as hub:
        ...  # a client whose HF_ENDPOINT is hub.url
        hub.repositories["owner/name"].files()

Repositories are made, listed, committed to and read; weights and binary files go by LFS (basic transfer) to a store at
an origin of its own, as the Hub's does, so that the client may not send its token there. Xet, which real uploads take,
is a protocol of its own: clients have to be told HF_HUB_DISABLE_XET=1.

    hub.fail("object", DROP, skip=1)   # all but the first upload of a large file break off in the middle
    hub.fail("commit", 503, times=1)   # the next commit is answered with 503; a function is called in place of that
"""

import json
import re
import socket
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import yaml
from hub_repository import Blob, Refusal, Repository, sha256

DROP = "drop"
"""The connection is closed once half of the request was read."""
LOSE = "lose"
"""The request is carried out, and the connection closed in place of an answer."""

TOKENS = {"hf_owner": ("owner", True), "hf_reader": ("owner", False)}
"""Token -> whose it is, and whether it may write."""

_REPO = r"(?P<repo>[^/]+/[^/]+)"
ROUTES = [
    ("whoami", "GET", r"/api/whoami-v2"),
    ("create", "POST", r"/api/repos/create"),
    ("validate", "POST", r"/api/validate-yaml"),
    ("info", "GET", rf"/api/models/{_REPO}(/revision/(?P<revision>[^/]+))?"),
    ("tree", "GET", rf"/api/models/{_REPO}/tree/(?P<revision>[^/]+)(/(?P<path>.+))?"),
    ("branch", "POST", rf"/api/models/{_REPO}/branch/(?P<revision>[^/]+)"),
    ("preupload", "POST", rf"/api/models/{_REPO}/preupload/(?P<revision>[^/]+)"),
    ("commit", "POST", rf"/api/models/{_REPO}/commit/(?P<revision>[^/]+)"),
    ("batch", "POST", r"/(?P<repo>[^/]+/[^/]+)\.git/info/lfs/objects/batch"),
    ("verify", "POST", r"/(?P<repo>[^/]+/[^/]+)\.git/info/lfs/objects/verify"),
    ("resolve", "GET", rf"/{_REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)"),
]
STORE = [("object", "PUT", r"/(?P<oid>[0-9a-f]{64})"), ("read", "GET", r"/(?P<oid>[0-9a-f]{64})")]
"""Name, method (HEAD is a GET without a body) and path of all that is answered, by the Hub and by its store."""


@dataclass
class Answer:
    body: bytes = b""
    status: int = 200
    headers: tuple[tuple[str, str], ...] = ()


@dataclass
class Fault:
    route: str
    """ "*": all."""
    how: str | int | Callable[[], None]
    times: float
    skip: int


class HubServer:
    """repositories: by name. objects: the store of large files, by SHA-256. asked: the routes of all requests. broken:
    what went wrong in here, which no client can see."""

    def __init__(self):
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.faults: list[Fault] = []
        self.broken: list[BaseException] = []
        self.lock = threading.RLock()
        self.servers = [_Threads(self, routes) for routes in (ROUTES, STORE)]
        self.url, self.store_url = (f"http://127.0.0.1:{server.server_port}" for server in self.servers)

    def __enter__(self):
        for server in self.servers:
            threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_):
        for server in self.servers:
            server.shutdown()
            server.server_close()

    def fail(self, route, how, *, times=float("inf"), skip=0):
        self.faults.append(Fault(route, how, times, skip))

    def fault(self, route):
        """What this request meets; None: nothing."""
        with self.lock:
            self.asked.append(route)
            for fault in self.faults:
                if fault.route not in (route, "*") or not fault.times:
                    continue
                if fault.skip:
                    fault.skip -= 1
                    continue
                fault.times -= 1
                return fault.how
        return None

    def repository(self, name, user) -> Repository:
        found = self.repositories.get(name)
        if found is None or (found.private and user != name.partition("/")[0]):
            raise Refusal(404 if user else 401, "Repository not found", "RepoNotFound")
        return found

    # What follows answers one route each: the parts of the path, the body, and the user with the right to write.

    def whoami(self, user, **_):
        if user is None:
            raise Refusal(401, "Invalid username or password.")
        return {"type": "user", "name": user}

    def create(self, user, writes, body, **_):
        asked = json.loads(body)
        name = f"{asked['organization'] or user}/{asked['name']}"
        if not writes or name.partition("/")[0] != user:
            raise Refusal(403, f"You don't have the rights to create a model under {name}")
        url = {"url": f"{self.url}/{name}"}
        if name in self.repositories:
            return Answer(json.dumps(url | {"error": "You already created this model repo"}).encode(), 409)
        self.repositories[name] = Repository(private=asked.get("visibility") == "private")
        return url

    def validate(self, body, **_):
        front = re.match(r"---\n(.*?)\n---", json.loads(body)["content"], re.DOTALL)
        try:
            yaml.safe_load(front[1] if front else "")
        except yaml.YAMLError as error:
            return Answer(json.dumps({"errors": [{"message": f"bad YAML: {error}"}], "warnings": []}).encode(), 400)
        return {"errors": [], "warnings": []}

    def info(self, repo, user, revision="main", **_):
        found = self.repository(repo, user)
        names = [{"rfilename": name} for name in sorted(found.files(revision))]
        return {"id": repo, "sha": found.sha(revision), "private": found.private, "siblings": names, "tags": []}

    def tree(self, repo, user, revision, path=None, **_):
        files = self.repository(repo, user).files(revision)
        found = {name: blob for name, blob in files.items() if path is None or name.startswith(f"{path}/")}
        if path is not None and not found:
            raise Refusal(404, f"{path} does not exist on {revision}", "EntryNotFound")
        return [{"type": "file", "path": name} | blob.described() for name, blob in sorted(found.items())]

    def branch(self, repo, user, writes, revision, body, **_):
        self.repository_to_write(repo, user, writes).make_branch(
            revision, json.loads(body or b"{}").get("startingPoint")
        )
        return {}

    def repository_to_write(self, repo, user, writes):
        found = self.repository(repo, user)
        if not writes or repo.partition("/")[0] != user:
            raise Refusal(403, "Authorization error.")
        return found

    def preupload(self, repo, user, writes, revision, body, **_):
        there = self.repository_to_write(repo, user, writes).files(revision)
        answers = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if Blob.is_large(file["path"], file["sample"]) else "regular",
                "shouldIgnore": False,
                "oid": there[file["path"]].oid if file["path"] in there else None,
            }
            for file in json.loads(body)["files"]
        ]
        return {"files": answers}

    def batch(self, repo, user, writes, body, **_):
        self.repository_to_write(repo, user, writes)
        objects = [{"oid": wanted["oid"], "size": wanted["size"]} for wanted in json.loads(body)["objects"]]
        for wanted in objects:
            if wanted["oid"] not in self.objects:
                upload, verify = f"{self.store_url}/{wanted['oid']}", f"{self.url}/{repo}.git/info/lfs/objects/verify"
                wanted["actions"] = {"upload": {"href": upload}, "verify": {"href": verify}}
        return {"transfer": "basic", "objects": objects}

    def verify(self, body, **_):
        asked = json.loads(body)
        if len(self.objects.get(asked["oid"], b"")) != asked["size"]:
            raise Refusal(404, "no such object")
        return {}

    def commit(self, repo, user, writes, revision, body, **_):
        found = self.repository_to_write(repo, user, writes)
        oid = found.commit(revision, [json.loads(line) for line in body.splitlines()], self.objects)
        return {"success": True, "commitOid": oid, "commitUrl": f"{self.url}/{repo}/commit/{oid}"}

    def resolve(self, repo, user, revision, path, **_):
        found = self.repository(repo, user)
        commit = ("X-Repo-Commit", found.sha(revision))
        blob = found.files(revision).get(path)
        if blob is None:
            raise Refusal(404, f"{path} does not exist", "EntryNotFound", (commit,))
        if not blob.large:
            return Answer(blob.content, headers=(commit, ("ETag", f'"{blob.oid}"')))
        linked = (("X-Linked-Etag", f'"{blob.oid}"'), ("X-Linked-Size", str(len(blob.content))))
        return Answer(status=302, headers=(commit, ("Location", f"{self.store_url}/{blob.oid}"), *linked))

    def object(self, oid, body, **_):
        if sha256(body) != oid:
            raise Refusal(400, "the content is not what its name says")
        self.objects[oid] = body
        return Answer()

    def read(self, oid, **_):
        if oid not in self.objects:
            raise Refusal(404, "no such object")
        return Answer(self.objects[oid])


class _Threads(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False  # a test may leave a request without an answer

    def __init__(self, hub, routes):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.hub, self.routes = hub, routes

    def handle_error(self, *_):
        error = sys.exception()
        if not isinstance(error, ConnectionError):  # clients may leave
            self.hub.broken.append(error)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self):
        method = {"HEAD": "GET"}.get(self.command, self.command)
        path = urlsplit(self.path).path  # quoted, for the slashes in names of branches
        for name, of, pattern in self.server.routes:
            if of == method and (match := re.fullmatch(pattern, path)):
                parts = {key: unquote(value) for key, value in match.groupdict().items() if value is not None}
                return self.carry_out(name, parts)
        self.read_body()
        return self.send(Answer(f"no route {method} {path}".encode(), 404))

    do_GET = do_HEAD = do_POST = do_PUT = answer

    def carry_out(self, name, parts):
        how = self.server.hub.fault(name)
        if how == DROP:
            self.rfile.read(int(self.headers.get("Content-Length") or 0) // 2)
            return self.hang_up()
        body = self.read_body()
        if isinstance(how, int):
            return self.send(_refused(Refusal(how, "told to fail")))
        if callable(how):
            how()
        try:
            user, writes = self.user()
            with self.server.hub.lock:
                answer = getattr(self.server.hub, name)(body=body, user=user, writes=writes, **parts)
        except Refusal as refusal:
            answer = _refused(refusal)
        return self.hang_up() if how == LOSE else self.send(answer)

    def user(self):
        said = self.headers.get("Authorization")
        if self.server.routes is STORE:
            assert said is None, "a token was sent to the store"
            return None, False
        if said is None:
            return None, False
        if said.removeprefix("Bearer ") not in TOKENS:
            raise Refusal(401, "Invalid credentials in Authorization header")
        return TOKENS[said.removeprefix("Bearer ")]

    def read_body(self):
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def hang_up(self):
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def send(self, answer):
        if not isinstance(answer, Answer):
            answer = Answer(json.dumps(answer).encode(), headers=(("Content-Type", "application/json"),))
        self.send_response(answer.status)
        for header in (*answer.headers, ("Content-Length", str(len(answer.body)))):
            self.send_header(*header)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)


def _refused(refusal):
    headers = (("X-Error-Message", refusal.message), ("Content-Type", "application/json"), *refusal.headers)
    if refusal.code is not None:
        headers += (("X-Error-Code", refusal.code),)
    return Answer(json.dumps({"error": refusal.message}).encode(), refusal.status, headers)
