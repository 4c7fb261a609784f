"""The repositories of hub_server.py: branches of commits, each with all of its files, in memory."""

import base64
import hashlib
import json
from dataclasses import dataclass, field


class Refusal(Exception):
    """An answer that is an error. code: the Hub's name for it, which the client reads."""

    def __init__(self, status, message, code=None, headers=()):
        super().__init__(message)
        self.status, self.message, self.code, self.headers = status, message, code, headers


def sha256(content):
    return hashlib.sha256(content).hexdigest()


@dataclass(frozen=True)
class Blob:
    content: bytes
    large: bool
    """Whether it came by LFS."""

    @staticmethod
    def is_large(path, sample):
        """As the .gitattributes of a new repository say: weights, and what is not text. sample: base64."""
        return path.endswith(".safetensors") or b"\0" in base64.b64decode(sample)

    @property
    def oid(self):
        if self.large:
            return sha256(self.content)
        return hashlib.sha1(b"blob %d\0" % len(self.content) + self.content).hexdigest()

    def described(self):
        size = len(self.content)
        lfs = {"lfs": {"oid": self.oid, "size": size, "pointerSize": 130}} if self.large else {}
        return {"oid": self.oid, "size": size} | lfs


@dataclass
class Repository:
    """commits: by their names, in order, each with its message and files. branches: name -> commit."""

    private: bool = False
    commits: dict[str, tuple[str, dict[str, Blob]]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)

    def __post_init__(self):
        self._add("main", "initial commit", {".gitattributes": Blob(b"*.safetensors filter=lfs\n", large=False)})

    def sha(self, revision="main"):
        found = self.branches.get(revision, revision)
        if found not in self.commits:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return found

    def files(self, revision="main"):
        return self.commits[self.sha(revision)][1]

    def read(self, path, revision="main"):
        return self.files(revision)[path].content

    @property
    def messages(self):
        return [message for message, _ in self.commits.values()]

    def make_branch(self, name, start):
        if name in self.branches:
            raise Refusal(409, "Reference already exists")
        self.branches[name] = self.sha(start or "main")

    def edit(self, path, text):
        """What somebody does on the Hub's pages."""
        self._add("main", f"Update {path}", self.files() | {path: Blob(text.encode(), large=False)})

    def commit(self, revision, lines, objects):
        """The lines of a commit, all or nothing; its name."""
        if revision not in self.branches:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        header, files = lines[0]["value"], dict(self.files(revision))
        if header.get("parentCommit", self.sha(revision)) != self.sha(revision):
            raise Refusal(412, "A commit has happened since. Please refresh and try again.")
        for line in lines[1:]:
            kind, value = line["key"], line["value"]
            if kind == "file":
                files[value["path"]] = Blob(base64.b64decode(value["content"]), large=False)
            elif kind == "lfsFile":
                if len(objects.get(value["oid"], b"")) != value["size"]:
                    raise Refusal(400, f"{value['path']}: the LFS pointer leads nowhere")
                files[value["path"]] = Blob(objects[value["oid"]], large=True)
            elif kind == "deletedFile" and value["path"] in files:
                del files[value["path"]]
            else:
                raise Refusal(404, f"{kind} {value}: A file with this name doesn't exist", "EntryNotFound")
        return self._add(revision, header["summary"], files)

    def _add(self, branch, message, files):
        told = [len(self.commits), self.branches.get(branch), message, {name: files[name].oid for name in files}]
        oid = hashlib.sha1(json.dumps(told, sort_keys=True).encode()).hexdigest()
        self.commits[oid] = (message, files)
        self.branches[branch] = oid
        return oid
