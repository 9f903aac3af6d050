"""``image_codes``: coded real images of a class, as many as fit into a budget."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from d3m_assets.assets.codec_choice import CodecChoice, encodable_class, no_codes, no_room, read_codec
from d3m_assets.assets.context import Context, Item
from d3m_assets.assets.files import from_parquet, to_parquet
from d3m_assets.assets.inverted_embeddings import class_selection_plan
from d3m_assets.assets.payload_bytes import code_bytes
from d3m_assets.assets.raw_dataset import RawDataset, image_rows
from d3m_assets.assets.selection_model import SelectionModel
from d3m_assets.datasets.images import contact_sheet
from d3m_assets.distillation.settings import AUTO, BOTH
from d3m_assets.errors import D3MError, StageError
from d3m_assets.evaluation import baselines, codecs
from d3m_assets.evaluation.baselines.encoded import EncodableClass
from d3m_assets.evaluation.codecs.reading import code_header, read_code
from d3m_assets.planning.asset import Asset, Check, Finding, Made
from d3m_assets.planning.versions import Version
from d3m_assets.progress import ProgressEvent
from d3m_assets.settings import Settings
from d3m_assets.store import ArtefactKey

if TYPE_CHECKING:
    import pandas as pd

FILE = "images.code"
MEMBERS = "coded_from.parquet"
"""The training image that each coded image is of: columns index (its number in the training set), relative_path, sha256."""
PREVIEW_IMAGES = 30


class ImageCodes(Asset):
    """Coded real images of a class within a budget: the training images that k-means chooses, as many as fit.

    One file holds all that is needed to decode them. Made only where image codes are a payload.
    """

    group = "distillation"
    partitions = ("class", "budget")
    replicated = True
    deps = (RawDataset, SelectionModel, CodecChoice)
    kinds = frozenset({"scikitlearn"})
    code_version = f"{codecs.CODE_VERSION}.{baselines.CODE_VERSION}"
    device = True
    checks = (
        Check("decodable_and_within_budget", "Every stored code can be decoded, and is no larger than its budget."),
    )

    def unused(self, settings: Settings) -> str:
        """They are made only where they are a payload."""
        return no_codes(settings)

    def settings(self, context: Context, item: Item) -> dict[str, Any]:
        """Bytes of the class, the seed of k-means, and the number of the first image where others are generated."""
        described = {
            "bytes_per_class": code_bytes(context, item.budget),
            "seed": item.seed,
            "image": context.image_shape,
            "device": context.device_kind,
        }
        first = first_number(context, item)
        return described | ({"first": first} if first else {})

    def make(self, context: Context, items: Sequence[Item]) -> Iterator[Made]:
        """Encode classes; what the network sees in the images of a class serves all its budgets and replicates."""
        held: tuple[str, EncodableClass] | None = None
        ordered = sorted(items, key=lambda item: item.dataset_class.position)
        for done, item in enumerate(ordered):
            context.progress(ProgressEvent(self.name, done, len(items), item.label))
            own, class_key = context.for_item(item), item.dataset_class.key
            try:
                if held is None or held[0] != class_key:
                    held = class_key, encodable_class(own, class_key)
                yield _made(own, item, held[1])
            except D3MError as error:
                yield Made(item.key, error=error)

    def preview(self, context: Context, item: Item) -> dict[str, Any]:
        """The decoded images, and which real ones they are."""
        images = read_images(context, item.key)
        members = from_parquet(context.inputs.read(item.key, MEMBERS))
        facts: dict[str, Any] = {"rows": len(members), "coded from": members.head(PREVIEW_IMAGES)}
        return facts | ({"coded_images_png": contact_sheet(images[:PREVIEW_IMAGES], 10, 4)} if len(images) else {})

    def verify(self, context: Context, item: Item) -> Iterable[Finding]:
        """Whether the code can be decoded to as many images as are recorded, and fits into the budget."""
        code, allowed = context.inputs.read(item.key, FILE), code_bytes(context, item.budget)
        try:
            images = read_images(context, item.key)
        except StageError as error:
            yield Finding(str(error))
            return
        members = from_parquet(context.inputs.read(item.key, MEMBERS))
        if len(images) != len(members):
            yield Finding(f"{len(images)} coded images, but {len(members)} are recorded")
        if len(code) > allowed:
            yield Finding(f"{len(code)} bytes of image codes, but the budget allows {allowed}")


def _made(context: Context, item: Item, images: EncodableClass) -> Made:
    import pandas as pd

    chosen, allowed = read_codec(context, item.budget.name), code_bytes(context, item.budget)
    code = None
    if chosen.codec is not None:
        start = images.count_that_fits(chosen.codec, allowed, item.seed)
        code = images.payload(chosen.codec, allowed, item.seed, start=start)
    if code is None and context.settings.payload != AUTO:
        words = "any codec" if chosen.codec is None else chosen.codec.words
        raise no_room(context, item, f"class {item.dataset_class.name}", words)
    shape = images.shape
    count = 0 if code is None else code_header(code, shape).count
    rows = image_rows(context, "train", item.dataset_class.key).sort_values("sha256", ignore_index=True)
    members = rows.iloc[images.positions(count, item.seed) if count else []]
    first = first_number(context, item)
    table = pd.DataFrame(
        {
            "index": np.arange(first, first + count),
            "relative_path": members["relative_path"].to_numpy(),
            "sha256": members["sha256"].to_numpy(),
        }
    )
    facts = {
        "payload_bytes": len(code or b""),
        "images": count,
        "codec": "none" if code is None or chosen.codec is None else chosen.codec.words,
    }
    return Made(item.key, {FILE: code or b"", MEMBERS: to_parquet(table, compression="zstd")}, facts)


def first_number(context: Context, item: Item) -> int:
    """The number of a class's first coded image: with ``payload=both`` behind all candidates of what is generated."""
    return class_selection_plan(context, item).candidates if context.settings.payload == BOTH else 0


def codes_key(context: Context, class_key: str, budget: str, replicate: int = 0) -> ArtefactKey:
    """The declared input that holds the code of a class."""
    (key,) = context.inputs.keys(ImageCodes, class_key=class_key, budget=budget, replicate=replicate)
    return key


def read_stored_code(context: Context, key: ArtefactKey) -> bytes:
    """The stored code of a class; empty where not one image fits, with ``payload=auto``.

    Raises:
        StageError: It is empty, as ``payload=auto`` may have stored it, with another payload.
    """
    code = context.inputs.read(key, FILE)
    if not code and context.settings.payload != AUTO:
        raise StageError(f"{key} has not one image, since none fits; give more bytes, or payload=prompts")
    return code


def read_images(context: Context, key: ArtefactKey) -> np.ndarray:
    """Decoded images of a class, uint8 ``[N, H, W, C]`` at the stored size; N may be 0 with ``payload=auto``."""
    code, shape = read_stored_code(context, key), context.dataset.shape
    size = shape.height, shape.width, shape.channels
    return read_code(code, size) if code else np.empty((0, *size), np.uint8)


def read_numbers(context: Context, key: ArtefactKey) -> np.ndarray:
    """The number of each coded image of a class in its training set, int ``[N]``."""
    return from_parquet(context.inputs.read(key, MEMBERS))["index"].to_numpy()


def coded_from(version: Version, index: int | None = None) -> pd.DataFrame | None:
    """The real images of a stored code: index, relative_path, sha256; None: its data is gone.

    Args:
        version: Of ``image_codes``.
        index: Number of one coded image; None: of all.
    """
    if not version.has(MEMBERS):
        return None
    table = from_parquet(version.read(MEMBERS))
    return table if index is None else table[table["index"] == index]
