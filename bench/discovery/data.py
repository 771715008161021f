"""The public data: fetched when somebody measures, each file as it was when docs/discovery.md was written."""

from __future__ import annotations

import csv
import json
import random
import re
import urllib.request
from collections import defaultdict
from hashlib import sha256
from pathlib import Path
from typing import Any, Final, NamedTuple

from meshd.discovery.document import Document, document_of
from meshd.discovery.entry import Entry, Origin, Sort
from meshd.discovery.intents import Intent

FOLDER: Final = Path(".bench/discovery")
_RAW: Final = "https://raw.githubusercontent.com"
_LIVE: Final = "icip-cas/LiveMCPBench/a928e57d1ee7a25579b9a7036030faffff72d15b"
_TOOLE: Final = "HowieHwong/MetaTool/35e81bb7576826e980c80fed8f8c0a2b4a1e6fbb/dataset"
_BANKING: Final = "PolyAI-LDN/task-specific-datasets/57ec275d8078af65b7731c2a98be812d844a6d6b/banking_data"
_CLINC: Final = "clinc/oos-eval/828f8093932c8fe6ca7936c3d2e52903b1c523de/data"
FILES: Final[dict[str, tuple[str, str]]] = {
    "livemcp/tools.json": (
        f"{_LIVE}/tools/LiveMCPTool/tools.json",
        "93762d39002fe7546d79b4c8f0ff070678f5d218af29f83bfc57cd98ce8a6a59",
    ),
    "livemcp/all_annotations.json": (
        f"{_LIVE}/annotated_data/all_annotations.json",
        "0e8db4c5abf4eb0b666f4cc4c1b1bd5cd6b8741ade7abb0fbc51526ae8b058b8",
    ),
    "toole/all_clean_data.csv": (
        f"{_TOOLE}/data/all_clean_data.csv",
        "cf2eb0474396677530931def51012da4e88f9f34f655332f04177b2054101baf",
    ),
    "toole/plugin_des.json": (
        f"{_TOOLE}/plugin_des.json",
        "c446ade5acfb8e16c477124250665021e63b11bf6cb232db04fc9ba6bed0389a",
    ),
    "toole/plugin_info.json": (
        f"{_TOOLE}/plugin_info.json",
        "864bf25bd5494feca861acb98f69d260f212d9c098a2dc68b4b2ee357d6fb2f5",
    ),
    "banking77/train.csv": (
        f"{_BANKING}/train.csv",
        "b06e26ac675513959a63135f11b94ea7786ed02da65db93a5650d8838cbc664b",
    ),
    "banking77/test.csv": (
        f"{_BANKING}/test.csv",
        "d12d6e3bc4c3103966ae786dc435913c0c563dfa328f5a3646d0e62cfeeb474d",
    ),
    "clinc150/data_full.json": (
        f"{_CLINC}/data_full.json",
        "36923c3705a59e08fe9c3883d8bc2dd966ef93e22cb78ac41171782a698d56e0",
    ),
}
"""By the name here: where it is, and its hash."""


class Tool(NamedTuple):
    """One tool of LiveMCPBench."""

    name: str
    document: Document
    definition: str
    """As a model is shown it."""


class Task(NamedTuple):
    """One task of LiveMCPBench."""

    question: str
    steps: tuple[tuple[str, str], ...]
    """Step and tool, where the annotation has as many of the one as of the other."""
    tools: frozenset[str]


class Data:
    """What was fetched, read."""

    def __init__(self, folder: Path | None) -> None:
        """`folder` holds the files already by the names of FILES."""
        self._folder = folder or FOLDER
        if folder is None:
            for name, (where, digest) in FILES.items():
                _fetch(FOLDER / name, f"{_RAW}/{where}", digest)

    def bytes(self, name: str) -> bytes:
        """Return a file. Raises ValueError where it is not the one that was measured."""
        content = (self._folder / name).read_bytes()
        if sha256(content).hexdigest() != FILES[name][1]:
            raise ValueError(f"{self._folder / name} is not the file that the figures were measured on")
        return content

    def tools(self) -> list[Tool]:
        """Return LiveMCPBench's tools."""
        found = []
        for server in json.loads(self.bytes("livemcp/tools.json")):
            for name, listed in server["tools"].items():
                owner = Entry(Sort.AGENT, name, name, server["description"] or "", server["name"])
                for tool in listed["tools"]:
                    schema = json.dumps(tool["inputSchema"] or {}).encode()
                    entry = Entry(
                        Sort.TOOL, name, tool["name"], tool["description"] or "", "", Origin.MCP, input_schema=schema
                    )
                    shown = {key: tool[key] for key in ("name", "description", "inputSchema")}
                    definition = json.dumps(shown, ensure_ascii=False)
                    found.append(Tool(tool["name"], document_of(entry, owner), definition))
        return found

    def tasks(self) -> list[Task]:
        """Return LiveMCPBench's tasks that name a tool that is there."""
        names = {tool.name for tool in self.tools()}
        found = []
        for task in json.loads(self.bytes("livemcp/all_annotations.json")):
            told = task["Annotator Metadata"]
            tools, steps = _listed(told["Tools"]), _listed(told["Steps"])
            pairs = zip(steps, tools, strict=True) if len(steps) == len(tools) else ()
            relevant = frozenset(tools) & names
            if relevant:
                known = tuple((step, tool) for step, tool in pairs if tool in names)
                found.append(Task(task["Question"], known, relevant))
        return found

    def plugins(self, *, with_what_they_say: bool) -> dict[str, Document]:
        """Return ToolE's tools."""
        more = {one["name_for_model"]: one for one in json.loads(self.bytes("toole/plugin_info.json"))}
        found = {}
        for name, description in json.loads(self.bytes("toole/plugin_des.json")).items():
            entry = Entry(Sort.TOOL, name, name, description)
            if with_what_they_say and name in more:
                told = more[name]
                said = dict.fromkeys((description, told["description_for_human"], told["description_for_model"]))
                entry = entry._replace(title=told["name_for_human"], description=" ".join(filter(None, said)))
            found[name] = document_of(entry)
        return found

    def queries(self) -> list[tuple[str, str]]:
        """Return ToolE's queries, each with its tool."""
        rows = csv.DictReader(self.bytes("toole/all_clean_data.csv").decode().splitlines(keepends=True))
        return [(row["Query"], row["Tool"]) for row in rows]

    def banking(self, part: str) -> list[tuple[str, str]]:
        """Return sentences of BANKING77 with their intents: of `train` or of `test`."""
        rows = csv.DictReader(self.bytes(f"banking77/{part}.csv").decode().splitlines(keepends=True))
        return [(row["text"], row["category"]) for row in rows]

    def clinc(self) -> dict[str, list[tuple[str, str]]]:
        """Return the parts of CLINC150."""
        read: dict[str, Any] = json.loads(self.bytes("clinc150/data_full.json"))
        return {part: [(text, intent) for text, intent in pairs] for part, pairs in read.items()}


def drawn(pool: list[tuple[str, str]], seed: int, count: int = 10) -> list[Intent]:
    """Return intents with `count` examples each, drawn from `pool`."""
    by_intent: dict[str, list[str]] = defaultdict(list)
    for text, intent in pool:
        by_intent[intent].append(text)
    chance = random.Random(seed)
    return [Intent(name, tuple(chance.sample(by_intent[name], count))) for name in sorted(by_intent)]


def _listed(text: str) -> list[str]:
    found = (re.sub(r"^\s*\d+[.)]\s*", "", line).strip() for line in text.split("\n"))
    return [line for line in found if line]


def _fetch(path: Path, address: str, digest: str) -> None:
    if path.exists() and sha256(path.read_bytes()).hexdigest() == digest:
        return
    with urllib.request.urlopen(address, timeout=60) as answer:
        content = answer.read()
    if sha256(content).hexdigest() != digest:
        raise ValueError(f"{address} is not the file that the figures were measured on")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
