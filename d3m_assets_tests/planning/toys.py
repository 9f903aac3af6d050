"""A graph of three toy assets with a context of its own: no dataset, no model and no asset of the package."""

import copy
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from d3m_assets.errors import D3MError, StageError
from d3m_assets.planning.asset import Asset, Check, Finding, Graph, Made
from d3m_assets.planning.planner import Inputs, Planner
from d3m_assets.progress import Progress, silent
from d3m_assets.settings import Settings
from d3m_assets.store import ArtefactKey, Store


@dataclass(frozen=True)
class Item:
    """A key and its label."""

    key: ArtefactKey
    label: str


class ToyContext:
    """Classes, budgets and replicates as they are told, and notes of what the assets did.

    Attributes:
        words: A word for each class.
        replicates: How many of each image there are.
        score_replicates: Which of them a score is made from.
        failing: Keys, as text, whose making fails.
        made: Keys, as text, in the order in which they were made.
    """

    settings: Any = None
    device = "cpu"
    inputs: Inputs

    def __init__(self, words: dict[str, str], progress: Progress = silent) -> None:
        self.words, self.progress = words, progress
        self.budgets, self.replicates = ("small", "large"), 2
        self.score_replicates: Sequence[int] = (0, 1)
        self.failing: set[str] = set()
        self.made: list[str] = []
        self.closed = 0

    def close(self) -> None:
        """Count it."""
        self.closed += 1

    def values(self, dimension: str) -> Sequence[Any]:
        """Of the three dimensions."""
        return {"class": list(self.words), "budget": self.budgets, "replicate": range(self.replicates)}[dimension]

    def item(self, key: ArtefactKey) -> Item:
        """With its label."""
        return Item(key, str(key))

    def reading(self, inputs: Inputs, *, force: bool = False) -> "ToyContext":
        """A copy that reads ``inputs``."""
        context = copy.copy(self)
        context.inputs, context.force = inputs, force
        return context

    def for_item(self, item: Item) -> "ToyContext":
        """A copy that reads what one item is made from."""
        return self.reading(self.inputs.of(item.key), force=self.force)

    def note(self, item: Item) -> None:
        """Write down that an artefact is made, or fail when told to."""
        if str(item.key) in self.failing:
            raise StageError(f"{item.key} was told to fail; take it out of failing")
        self.made.append(str(item.key))


class ToyWord(Asset):
    """The word of a class."""

    group = "toys"
    partitions = ("class",)
    checks = (Check("nothing_behind", "Every word is up to date.", staleness=True),)

    def settings(self, context: ToyContext, item: Item) -> dict[str, Any]:
        """The word."""
        return {"word": context.words[str(item.key.class_key)]}

    def make_one(self, context: ToyContext, item: Item) -> Made:
        """It, as JSON."""
        context.note(item)
        word = context.words[str(item.key.class_key)]
        return Made(item.key, {"word.json": json.dumps(word).encode()}, {"letters": len(word)})

    def preview(self, context: ToyContext, item: Item) -> dict[str, Any]:
        """The word."""
        return {"word": json.loads(context.inputs.read(item.key, "word.json"))}


class ToyImage(Asset):
    """Grey squares of a class,
    in several replicates."""

    group = "toys"
    partitions = ("class", "budget")
    replicated = True
    deps = (ToyWord,)
    kinds = frozenset({"python", "parquet"})
    code_version = "7"
    device = True
    checks = (
        Check("grey", "Every image is grey."),
        Check("square", "Every image is square."),
    )

    def settings(self, context: ToyContext, item: Item) -> dict[str, Any]:
        """The replicate, which stands for a seed."""
        return {"seed": item.key.replicate}

    def make(self, context: ToyContext, items: Sequence[Item]) -> Iterator[Made]:
        """One after the other, each from its word."""
        for item in items:
            try:
                context.note(item)
            except D3MError as error:
                yield Made(item.key, error=error)
                continue
            (word,) = context.inputs.keys(ToyWord, class_key=item.key.class_key)
            data = context.inputs.read(word, "word.json") + bytes([item.key.replicate])
            yield Made(item.key, {"image.bin": data}, {"bytes": len(data)})

    def preview(self, context: ToyContext, item: Item) -> dict[str, Any]:
        """Something that looks like a PNG."""
        return {"square_png": b"\x89PNG" + context.inputs.read(item.key, "image.bin")[-1:]}

    def verify(self, context: ToyContext, item: Item) -> Iterator[Finding]:
        """The second replicate of the class "odd" is not square."""
        if item.key.class_key == "odd" and item.key.replicate == 1:
            yield Finding("not square", check="square")


class ToyScore(Asset):
    """How good the images of a budget are."""

    group = "toys"
    partitions = ("budget",)
    deps = (ToyImage, ToyWord)

    def inputs(self, context: ToyContext, item: Item) -> Sequence[type[Asset]]:
        """The images; the words are lineage."""
        return (ToyImage,)

    def replicates(self, context: ToyContext, dep: type[Asset]) -> Sequence[int]:
        """As the context says."""
        return context.score_replicates

    def make_one(self, context: ToyContext, item: Item) -> Made:
        """How many bytes they have."""
        context.note(item)
        keys = context.inputs.keys(ToyImage)
        total = sum(len(context.inputs.read(key, "image.bin")) for key in keys)
        return Made(item.key, {"score.json": json.dumps(total).encode()}, {"score": total, "images": len(keys)})


CLASSES = (ToyWord, ToyImage, ToyScore)
GRAPH = Graph(*CLASSES)


class ToyPlanner(Planner):
    """A planner over the toy graph."""

    context: ToyContext

    def __init__(self, context: ToyContext, store: Store, graph: Graph = GRAPH) -> None:
        super().__init__(graph, context, store)


def opener(context: ToyContext, graph: Graph = GRAPH) -> Any:
    """Opens a planner over ``context`` in the store of the settings, as ``Pipeline`` does for the package's graph."""

    def open_planner(settings: Settings, *, progress: Progress = silent) -> Planner:
        context.progress = progress
        return ToyPlanner(context, Store.open(settings.storage_url), graph)

    return open_planner
