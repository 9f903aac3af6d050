"""Damaged and hostile bundles, read, shown, planned and regenerated as the product does it.

``python -m d3m_assets_tests.faults.bundles --count 10000`` prints counts. Sound bundles are changed in their bytes or in their
JSON, most of them with the hash made right again, so that the checks behind the hash are reached too. What is not accepted must
be refused with a sentence, within seconds and a bounded memory; what is accepted must send nothing to a terminal but text and plan
no file outside its folder. The work is done in a process of its own with a limit on its memory.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import os
import random
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np

from d3m_assets.datasets.names import class_key
from d3m_assets.distillation.budgets import EmbeddingPlan
from d3m_assets.distillation.bundle import Bundle, DistilledClass, Recipe
from d3m_assets.distillation.prompts import ClassPrompts
from d3m_assets.distillation.selection import encode_selection
from d3m_assets.distillation.settings import GenerationSettings
from d3m_assets.distillation.vectors import to_stored
from d3m_assets.errors import BundleError, D3MError

MEMORY_MIB = 1024
"""Address space beyond what the process has when it is ready, which no bundle may exceed."""
SECONDS = 10.0
"""Time that no bundle may exceed."""
MOST_STEPS = 4
"""A bundle that asks for more denoising steps is read, shown and planned, but not regenerated."""
HOSTILE_NAMES = (
    "..",
    "../../x",
    "..\\..\\x",
    "/abs",
    "C:x",
    "C:\\x",
    "\\\\host\\share",
    "file:stream",
    "CON",
    "nul.txt",
    "Com1 .a",
    "LPT\u00b9",
    "dot.",
    "space ",
    "\x1b[31mred\x1b]0;title\x07",
    "\x9b31m",
    "line\nfeed",
    "\u202egnp.exe",
    "\u2028",
    "<script>alert(1)</script>",
    "[x](javascript:y)",
    '"); import os; ("',
    "100%2E",
    "%~",
    ".hidden",
    "\U0001f469\u200d\U0001f52c",
    "日本 語",
    "x" * 400,
    "\U0001d54f" * 400,
)
"""Names of classes that a dataset may have and that must be safe in every export and on every terminal."""


def subjects(foundation_fingerprint: str) -> dict[str, Bundle]:
    """Sound bundles of each kind, which regenerate with the embedded model."""
    rng = np.random.default_rng(0)
    names = ("Tabby cat", "two words", "日本 語")

    def bundle(classes: list[DistilledClass], **changes: Any) -> Bundle:
        generation = GenerationSettings(images_per_class=2, steps=2, batch_size=2)
        given: dict[str, Any] = {
            "budget": "ipc-8",
            "bytes_per_class": 512,
            "dataset": "digits",
            "image_height": 8,
            "image_width": 8,
            "channels": 1,
            "foundation": "embedded",
            "foundation_fingerprint": foundation_fingerprint,
            "foundation_bytes": 1000,
            "generation": generation.fingerprint(),
            "scheduler": "cosine v",
            "seed": 0,
            "templates": ("a photo of a {}", "the {}"),
            "keep_class_name": True,
        }
        return Bundle(Recipe(**given | changes), tuple(classes))

    def words(class_id: int, name: str) -> ClassPrompts:
        templates = ("a photo of a {}", "the {}")
        key = class_key(name)
        return ClassPrompts.of(class_id, key, name, templates=templates, initializer=None, keep_class_name=True)

    def prompts(plan: EmbeddingPlan) -> list[DistilledClass]:
        rows = rng.normal(size=(len(names), plan.prompts, plan.vectors, plan.width)).astype(np.float32)
        return [
            DistilledClass(words(i, name), plan, to_stored(rows[i], plan, (plan.width,)))
            for i, name in enumerate(names)
        ]

    selected = [
        replace(c, selection=encode_selection(kept, 12, 2))
        for c, kept in zip(prompts(EmbeddingPlan(1, 1, "int4", 64)), ([0, 7], [3], [10, 11]), strict=True)
    ]
    return {
        "int8": bundle(prompts(EmbeddingPlan(2, 1, "int8", 64))),
        "int4 and selections": bundle(selected, criterion="centres", candidates=12, kept=2),
        "float16 and norms": bundle(prompts(EmbeddingPlan(1, 2, "fp16", 64, norms=1))),
        "autoencoder": bundle(
            prompts(EmbeddingPlan(1, 1, "int8", 64)),
            autoencoder="taesd",
            autoencoder_fingerprint="a" * 64,
            autoencoder_bytes=10,
        ),
        "codes": bundle(
            [
                DistilledClass.coded(words(i, name), code)
                for i, (name, code) in enumerate(zip(names, _codes(rng), strict=True))
            ],
            foundation="",
            foundation_fingerprint="",
            foundation_bytes=0,
            generation={},
            payload="codes",
            payload_choice="codes: 0.9 against 0.8",
        ),
    }


def _codes(rng: np.random.Generator) -> list[bytes]:
    from d3m_assets.evaluation.codecs import CODED, encode_images

    images = rng.integers(0, 256, (3, 2, 8, 8, 1)).astype(np.uint8)
    suitable = [codec for codec in CODED if codec.suits((8, 8, 1), 2)]
    return [encode_images(suitable[i * (len(suitable) - 1) // 2], own) for i, own in enumerate(images)]


def sealed(data: bytes) -> bytes:
    """The file with a hash that is right, where it has a place for one."""
    place = re.search(rb'"sha256":"([^"]{64})"', data)
    if place is None:
        return data
    blank = data[: place.start(1)] + b"0" * 64 + data[place.end(1) :]
    return data[: place.start(1)] + hashlib.sha256(blank).hexdigest().encode() + data[place.end(1) :]


@dataclass
class Parts:
    """A file taken apart.

    Attributes:
        metadata: Of the header, with recipe and classes as text.
        tensors: Type, shape and place of each tensor.
        body: Bytes of the tensors.
    """

    metadata: dict[str, str]
    tensors: dict[str, Any]
    body: bytes

    @classmethod
    def of(cls, data: bytes) -> Parts:
        """Take a file apart."""
        end = 8 + int.from_bytes(data[:8], "little")
        header = json.loads(data[8:end])
        return cls(header.pop("__metadata__"), header, data[end:])

    def recipe(self, **changes: Any) -> Parts:
        """With other values in the recipe."""
        return self._with("recipe", _dumps(json.loads(self.metadata["recipe"]) | changes, sort_keys=True))

    def classes(self, change: Callable[[list[Any]], Any]) -> Parts:
        """With other entries of classes; ``change`` changes them in place."""
        entries = json.loads(self.metadata["classes"])
        change(entries)
        return self._with("classes", _dumps(entries))

    def _with(self, name: str, text: str) -> Parts:
        return replace(self, metadata=self.metadata | {name: text})

    def to_bytes(self) -> bytes:
        """The file, with a hash that is right."""
        text = _dumps({"__metadata__": dict(sorted(self.metadata.items())), **self.tensors}).encode(errors="replace")
        text += b" " * (-len(text) % 8)
        return sealed(len(text).to_bytes(8, "little") + text + self.body)


class Raw(str):
    """JSON text that no JSON writer gives."""


def _dumps(value: Any, **options: Any) -> str:
    """JSON as bundles have it; :class:`Raw` values as they are, and characters that are no Unicode as escapes."""
    raw: list[str] = []

    def marked(part: Any) -> Any:
        if isinstance(part, Raw):
            raw.append(str(part))
            return f"<raw {len(raw) - 1}>"
        if isinstance(part, dict):
            return {key: marked(item) for key, item in part.items()}
        return [marked(item) for item in part] if isinstance(part, list | tuple) else part

    text = json.dumps(marked(value), ensure_ascii=False, separators=(",", ":"), **options)
    text = re.sub("[\ud800-\udfff]", lambda found: f"\\u{ord(found[0]):04x}", text)
    return re.sub('"<raw ([0-9]+)>"', lambda found: raw[int(found[1])], text)


DEEP = Raw("[" * 50_000 + "]" * 50_000)
CORPUS: dict[str, Callable[[Parts], Parts]] = {
    "deep recipe": lambda p: p.recipe(generation=DEEP),
    "deep classes": lambda p: p._with("classes", DEEP),
    "recipe of 100 nested objects": lambda p: p.recipe(generation=Raw('{"a":' * 100 + "1" + "}" * 100)),
    "seed of 5,000 digits": lambda p: p.recipe(seed=Raw("9" * 5000)),
    "seed as 0.0": lambda p: p.recipe(seed=0.0),
    "seed as a text": lambda p: p.recipe(seed="0"),
    "seed twice": lambda p: p._with("recipe", p.metadata["recipe"].replace('"seed":0', '"seed":1,"seed":0')),
    "a space in the recipe": lambda p: p._with("recipe", p.metadata["recipe"].replace(":", ": ", 1)),
    "height of 10**9": lambda p: p.recipe(image_height=10**9),
    "steps of 10**9": lambda p: p.recipe(generation={"steps": 10**9}),
    "guidance that is no number": lambda p: p.recipe(generation={"guidance_scale": Raw("NaN")}),
    "guidance without end": lambda p: p.recipe(generation={"guidance_scale": Raw("1e999")}),
    "unknown generation setting": lambda p: p.recipe(generation={"unheard_of": 1}),
    "a file as the autoencoder": lambda p: p.recipe(generation={"tiny_autoencoder": "/etc"}),
    "a template that looks into objects": lambda p: p.recipe(templates=["{} {0.__class__}"]),
    "a template that is wide": lambda p: p.recipe(templates=["{:>999999999}"]),
    "a template of a megabyte": lambda p: p.recipe(templates=["{}" + "x" * 2**20]),
    "a dataset of a megabyte": lambda p: p.recipe(dataset="x" * 2**20),
    "half a character": lambda p: p.recipe(dataset="\ud800"),
    "a budget that is a command": lambda p: p.recipe(budget="ipc-1; rm -rf ~"),
    "a million candidates": lambda p: p.recipe(criterion="centres", candidates=10**6, kept=5 * 10**5),
    "as many candidates as there may be": lambda p: p.recipe(criterion="centres", candidates=10**5, kept=5 * 10**4),
    "a vector of 10**9 numbers": lambda p: p.recipe(width=10**9),
    "no classes": lambda p: p._with("classes", "[]"),
    "classes that are a number": lambda p: p._with("classes", "5"),
    "a class that is a number": lambda p: p.classes(lambda c: c.__setitem__(0, 5)),
    "two classes of one name": lambda p: p.classes(lambda c: c[1].__setitem__(1, c[0][1])),
    "two classes of one number": lambda p: p.classes(lambda c: c[1].__setitem__(0, c[0][0])),
    "a class of half a character": lambda p: p.classes(lambda c: c[0].__setitem__(1, "\udfff")),
    "a class without a name": lambda p: p.classes(lambda c: c[0].__setitem__(1, "")),
    "a class of 401 characters": lambda p: p.classes(lambda c: c[0].__setitem__(1, "x" * 401)),
    "a class in two spellings": lambda p: p.classes(lambda c: c[0].__setitem__(1, "e\u0301")),
    "a class that is number -1": lambda p: p.classes(lambda c: c[0].__setitem__(0, -1)),
    "a class that is number 10**30": lambda p: p.classes(lambda c: c[0].__setitem__(0, 10**30)),
    "a key that leaves": lambda p: p.classes(lambda c: c[0][4].__setitem__("key", "../x")),
    "10**9 prompts": lambda p: p.classes(lambda c: c[0].__setitem__(2, 10**9)),
    "100,000 empty entries": lambda p: p._with("classes", "[" + ",".join(["[]"] * 100_000) + "]"),
    "tensors that overlap": lambda p: replace(p, tensors=p.tensors | {"more": next(iter(p.tensors.values()))}),
    "a tensor of no size": lambda p: replace(
        p, tensors={n: t | {"shape": [2**40, 2**40]} for n, t in p.tensors.items()}
    ),
    "vectors that are zero": lambda p: replace(p, body=bytes(len(p.body))),
    "vectors that are not finite": lambda p: replace(p, body=b"\xff\x7f" * (len(p.body) // 2)),
    "one more field": lambda p: p._with("more", "x"),
}
"""Files that once ended in a traceback, were accepted or took long, and their like: how a sound file becomes one."""

ODD: dict[str, Callable[[Parts], Parts]] = {
    "no steps": lambda p: p.recipe(generation={"guidance_scale": 2.0, "batch_size": 2, "images_per_class": 2}),
    "a single template that is all name": lambda p: p.recipe(templates=["{}"]),
    "markup and code in texts for people": lambda p: p.recipe(
        dataset='<script>x</script>"); import os; ("', licence="[x](javascript:y)\n# x", scheduler="\x1b[31m\x9b\u202e"
    ),
}
"""Files that are odd and must do all the same."""

_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, 2, 3, -1, 0.5, 1.0, 10**9, 2**63, 10**30, "", "x", "codes", "int4", "int8", "fp16", [], {}),
    *("x" * 100_000, "\ud800", ["{}"], ["a {}", "{}"], [[]], {"steps": 3}, {"steps": 10**9}, Raw("NaN"), Raw("-1e999"), DEEP),
    *HOSTILE_NAMES,
)  # fmt: skip


def mutated(data: bytes, rng: random.Random) -> tuple[bytes, bool]:
    """A changed file, and whether its hash was made right."""
    kind = rng.randrange(4)
    if kind == 0:
        return _changed_bytes(data, rng), False
    if kind == 1:
        return sealed(_changed_bytes(data, rng)), True
    parts = Parts.of(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        parts = _changed_part(parts, rng)
    changed = parts.to_bytes()
    if kind == 2 and rng.random() < 0.3:  # the old hash stays
        place, old = re.search(rb'"sha256":"([^"]{64})"', changed), Parts.of(data).metadata["sha256"].encode()
        if place is not None:
            return changed[: place.start(1)] + old + changed[place.end(1) :], False
    return changed, True


def _changed_bytes(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    end = 8 + int.from_bytes(data[:8], "little")
    for _ in range(rng.choice((1, 1, 1, 2, 8))):
        # The payload is short beside the header.
        at = (
            rng.randrange(min(end, len(changed) - 1), len(changed))
            if rng.random() < 0.5
            else rng.randrange(len(changed))
        )
        action = rng.randrange(5)
        if action == 0:
            changed[at] ^= 1 << rng.randrange(8)
        elif action == 1:
            changed[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, 0x22, 0x5C, 0x7B, rng.randrange(256)))
        elif action == 2:
            changed[at:at] = rng.randbytes(rng.choice((1, 8, 100)))
        elif action == 3:
            del changed[at : at + rng.choice((1, 8, 100))]
        else:
            changed[:8] = rng.choice((0, 8, 2**63, 2**64 - 1, len(data), rng.randrange(2 * len(data)))).to_bytes(
                8, "little"
            )
        if len(changed) < 9:
            break
    return bytes(changed)


def _changed_part(parts: Parts, rng: random.Random) -> Parts:
    kind = rng.randrange(8)
    if kind == 0:
        tensors = _changed_json(parts.tensors, rng)
        return replace(parts, tensors=tensors) if isinstance(tensors, dict) else parts
    if kind == 1 and parts.body:
        body = bytearray(parts.body)
        for _ in range(rng.choice((1, 4, len(body)))):
            body[rng.randrange(len(body))] = rng.choice((0, 0x7C, 0x7F, 0xFF, rng.randrange(256)))
        return replace(parts, body=bytes(body))
    name = rng.choice(("recipe", "classes"))
    try:
        value = json.loads(parts.metadata[name])
    except (ValueError, RecursionError):  # it has been changed before
        return parts
    return parts._with(name, _dumps(_changed_json(value, rng), sort_keys=name == "recipe"))


def _changed_json(value: Any, rng: random.Random) -> Any:
    """A value with one part of it replaced, deleted, repeated or swapped."""
    if not isinstance(value, dict | list) or not value or rng.random() < 0.05:
        if isinstance(value, int) and not isinstance(value, bool) and rng.random() < 0.5:
            return value + rng.choice((-1, 1, 7))
        return rng.choice(_VALUES)
    if isinstance(value, dict):
        key = rng.choice(list(value))
        if rng.random() < 0.1:
            return {k: v for k, v in value.items() if k != key}
        if rng.random() < 0.05:
            return value | {rng.choice(("x", "seed", "\x1b[31m", "\ud800", "codes", "all", "key")): rng.choice(_VALUES)}
        return value | {key: _changed_json(value[key], rng)}
    at = rng.randrange(len(value))
    if rng.random() < 0.1:
        return value[:at] + value[at + 1 :]
    if rng.random() < 0.05:
        return [*value, value[at]]
    return [*value[:at], _changed_json(value[at], rng), *value[at + 1 :]]


def probe(data: bytes, foundation: Any, folder: Path) -> Bundle:
    """Read, show, plan and, where that is soon done, regenerate one image of each class.

    Args:
        data: Contents of a file.
        foundation: The embedded model, loaded.
        folder: Of the file.

    Raises:
        D3MError: It is refused.
        AssertionError: It would have reached a terminal or another folder.
    """
    from d3m_assets.cli.bundles import inspect
    from d3m_assets.exports.bundle_repository import model_card
    from d3m_assets.exports.dataset_card import dataset_card
    from d3m_assets.exports.formats import FORMATS
    from d3m_assets.exports.formats.writer import ExportPlan
    from d3m_assets.exports.stream import ImageStream
    from d3m_assets.exports.tokens import export_tokens

    path = folder / "bundle.safetensors"
    path.write_bytes(data)
    bundle = Bundle.load(path)
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown):
        inspect(path)
        inspect(path, as_json=True)
    texts, cards = [shown.getvalue()], [model_card(bundle)]
    counts = tuple(1 for _ in bundle.classes)
    plan = ExportPlan(bundle, counts, (8, 8), 1, "float32 cpu")
    for name, kind in FORMATS.items():
        cards.append(dataset_card(plan, kind(folder, plan), name))
    for card in cards:
        # Class names stand in the front matter as they are, for programs; YAML escapes control characters alone.
        front, page = card.split("\n---\n", 1)
        assert not [c for c in front if unicodedata.category(c) == "Cc" and c != "\n"]
        texts.append(page)
    for text in texts:
        escapes = [c for c in text if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") and c != "\n"]
        assert not escapes, f"{escapes[:3]!r} reach a terminal"
    for name in plan.folders:
        inside = PureWindowsPath("C:/out", name).parent == PureWindowsPath("C:/out")
        assert inside and PurePosixPath("/out", name).parent == PurePosixPath("/out"), f"{name!r} leaves its folder"
        assert name not in (".", "..") and not PureWindowsPath(name).is_reserved() and ":" not in name, repr(name)
    assert len(set(plan.folders)) == len(plan.folders)
    if bundle.generates:
        bundle.check_foundation(foundation.files.fingerprint, foundation.files.name)
        bundle.check_autoencoder(None)
        tokens = folder / "tokens"
        shutil.rmtree(tokens, ignore_errors=True)
        for token in export_tokens(bundle, foundation.layout, tokens, "concept"):
            assert token.path.parent.parent == tokens, f"{token.path} leaves its folder"
        if bundle.generation_settings().steps > MOST_STEPS:
            return bundle
    for _, image in zip(range(1), ImageStream(bundle, foundation, per_class=1).images(), strict=False):
        image.png()
    return bundle


@dataclass
class Counts:
    """What happened.

    Attributes:
        counts: Bundles by what became of them.
        seconds: The longest of one.
        tracebacks: Of each kind one, as text.
    """

    counts: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    tracebacks: dict[str, str] = field(default_factory=dict)

    def attack(self, data: bytes, sound: bytes, right_hash: bool, foundation: Any, folder: Path, case: str) -> None:
        """Probe one file and count what happens."""
        begun = time.monotonic()
        try:
            Bundle.from_bytes(data)
            outcome = "accepted, equal" if data == sound else "accepted, changed with a hash made right"
            if data != sound and not right_hash:
                outcome = "accepted with another meaning"
        except BundleError:
            outcome = "refused"
        except Exception:
            outcome = "read, then a traceback"
        try:
            probe(data, foundation, folder)
        except D3MError as error:
            if outcome != "refused":
                outcome += ", then refused in use"
            elif not isinstance(error, BundleError):
                outcome = "refused by another error"
        except Exception as error:
            outcome = "traceback"
            where = traceback.extract_tb(error.__traceback__)[-1]
            kind = f"{type(error).__name__} in {Path(where.filename).name}:{where.lineno}"
            self.tracebacks.setdefault(kind, f"{case}: {traceback.format_exc()[-3000:]}")
        seconds = time.monotonic() - begun
        self.counts[outcome] += 1
        self.seconds = max(self.seconds, seconds)
        if seconds > SECONDS:
            self.counts["too slow"] += 1
            self.tracebacks.setdefault("too slow", case)


def cases(sound: dict[str, Bundle], count: int, seed: int) -> Iterator[tuple[str, bytes, bytes, bool]]:
    """Name, contents, the sound contents and whether the hash is right: the corpus and hostile names, then ``count`` others."""
    files = {kind: bundle.to_bytes() for kind, bundle in sound.items()}
    for kind, data in files.items():
        yield f"{kind}: sound", data, data, True
        for name, change in (CORPUS | ODD).items():
            yield f"{kind}: {name}", change(Parts.of(data)).to_bytes(), data, True
    data = files["int8"]
    for name in HOSTILE_NAMES:
        named = Parts.of(data).classes(lambda c, name=name: c[0].__setitem__(1, name))
        yield f"a class {name!r}", named.to_bytes(), data, True
    kinds = list(files)
    for number in range(count):
        rng = random.Random(f"{seed} {number}")
        data = files[rng.choice(kinds)]
        changed, right_hash = mutated(data, rng)
        yield f"seed {seed}, number {number}", changed, data, right_hash


def run(count: int, seed: int) -> dict[str, Any]:
    """Attack with the corpus and ``count`` other bundles, in a process of its own.

    Returns:
        Counts of what happened, the longest ``seconds``, ``peak_mib`` of memory beyond the most that the process had before, and
        ``tracebacks`` of each kind.
    """
    command = [sys.executable, "-m", __spec__.name, "--count", str(count), "--seed", str(seed), "--here"]
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"the process ended with {done.returncode}:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def _run_here(count: int, seed: int) -> dict[str, Any]:
    from d3m_assets.foundation.files import FoundationFiles, embedded_path
    from d3m_assets.foundation.loading import load_foundation

    foundation = load_foundation(FoundationFiles("embedded", embedded_path()), "cpu")
    sound, found = subjects(foundation.files.fingerprint), Counts()
    with tempfile.TemporaryDirectory() as folder:
        for bundle in sound.values():  # what is loaded at first use is none of a hostile bundle's memory
            with contextlib.suppress(D3MError):
                probe(bundle.to_bytes(), foundation, Path(folder))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + MEMORY_MIB * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        for case, data, original, right_hash in cases(sound, count, seed):
            found.attack(data, original, right_hash, foundation, Path(folder), case)
            if sum(found.counts.values()) % 500 == 0:
                print(dict(found.counts), file=sys.stderr, flush=True)
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    return {
        **dict(sorted(found.counts.items())),
        "seconds": round(found.seconds, 2),
        "peak_mib": round(peak),
        "tracebacks": found.tracebacks,
    }


def faults(found: dict[str, Any]) -> list[str]:
    """What is wrong in the counts of :func:`run`; empty: nothing."""
    never = (
        "traceback",
        "read, then a traceback",
        "refused by another error",
        "accepted with another meaning",
        "too slow",
    )
    return [f"{found[name]} {name}" for name in never if found.get(name)]


def main() -> None:
    """Attack by command, and exit with 1 where something is wrong."""
    parser = argparse.ArgumentParser(description="Read damaged and hostile bundles, and count what happens.")
    parser.add_argument("--count", type=int, default=1000, help="bundles beside the corpus")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.here:
        print(json.dumps(_run_here(asked.count, asked.seed)))
        return
    found = run(asked.count, asked.seed)
    for kind, text in found.pop("tracebacks").items():
        print(f"{kind}: {text}")
    print(json.dumps(found, indent=1))
    sys.exit(1 if faults(found) else 0)


if __name__ == "__main__":
    main()
