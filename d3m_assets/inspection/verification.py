"""What ``d3m verify`` compares: a folder with the bundle its images name, or a bundle with the pools of the store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from d3m_assets.assets import distilled_bundle, synthetic_pool
from d3m_assets.assets.distilled_bundle import find_bundle
from d3m_assets.assets.files import from_parquet
from d3m_assets.assets.image_codes import FILE as CODE
from d3m_assets.assets.image_codes import ImageCodes
from d3m_assets.assets.synthetic_pool import is_coded, pool_images, pool_versions
from d3m_assets.datasets.images import decode_png, encode_png
from d3m_assets.datasets.labelled_images import resize_to_square
from d3m_assets.distillation.bundle import Bundle
from d3m_assets.errors import BundleError, StageError
from d3m_assets.exports.verification import FolderImages, ImageSource
from d3m_assets.planning.versions import Version
from d3m_assets.store import ArtefactKey, Store
from d3m_assets.terminal import printable

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd


def subject(target: Path, bundle: Path | None, store: Store) -> tuple[Bundle, ImageSource]:
    """The bundle to generate from and the images to compare with.

    Args:
        target: A folder that ``d3m regenerate`` wrote, or a bundle, which is compared with the pools in the store.
        bundle: The bundle of a folder; None: the store is asked for the one that the images name.
        store: Where pools and bundles are kept.

    Raises:
        BundleError: The bundle is not the images', or cannot be found; or there is nothing to compare it with.
        StageError: A pool was generated from other vectors.
    """
    if not target.is_dir():
        if bundle is not None:
            raise BundleError(f"{printable(target)} is a file, so --bundle has nothing to say; give one of the two")
        loaded = Bundle.load(target)
        return loaded, PoolImages(loaded, store)
    if bundle is not None:
        loaded = Bundle.load(bundle)
        return loaded, FolderImages(target, (loaded.sha256, str(bundle)))
    record = FolderImages(target).first_record
    if record is None:
        raise BundleError(
            f"the images of {printable(target)} do not say which bundle they come from; name it with --bundle"
        )
    version = find_bundle(store, record.bundle)
    if version is None or not version.current:
        state = "has replaced" if version else "does not have"
        raise BundleError(
            f"{printable(target)} was generated from the bundle with SHA-256 {record.bundle[:12]}…, which the store {store.url} "
            f"{state}; name the file with --bundle, or the store with --storage and --dataset"
        )
    loaded = Bundle.from_bytes(version.read(distilled_bundle.FILE), str(version.key))
    return loaded, FolderImages(target, (loaded.sha256, str(version.key)))


class PoolImages:
    """Images of the pools that were made from a bundle's payloads, one class in memory at a time.

    Args:
        bundle: The bundle.
        store: Where the pools are.

    Raises:
        BundleError: The store does not have the bundle, or no pool of it.
        StageError: A pool was generated from other vectors.
    """

    def __init__(self, bundle: Bundle, store: Store) -> None:
        version = find_bundle(store, bundle.sha256)
        keys = {c.prompts.class_name: c.prompts.class_key for c in bundle.classes}
        pools = pool_versions(store, version, keys.values()) if version else {}
        if not pools:
            raise BundleError(
                f"the store {store.url} has {'no pool of this bundle' if version else 'not made this bundle'}, so there are no "
                "images to compare with: name a folder of `d3m regenerate`, or the store with --storage and --dataset"
            )
        self._pools: Mapping[str, Version] = {name: pools[key] for name, key in keys.items() if key in pools}
        self._selected = {
            c.prompts.class_name: frozenset(numbers.tolist())
            for c in bundle.classes
            if (numbers := bundle.training_numbers(c)) is not None
        }
        self._bundle = bundle
        self._numbers = {c.prompts.class_name: bundle.code_numbers(c) for c in bundle.classes}
        of_class = {name: ArtefactKey(ImageCodes.name, key, bundle.recipe.budget) for name, key in keys.items()}
        self._codes: Mapping[str, Version | None] = {}
        if bundle.has_codes and version is not None:
            self._codes = {name: version.made_from(str(key)) for name, key in of_class.items()}
            if gone := [name for name, codes in self._codes.items() if codes is None or not codes.current]:
                raise StageError(
                    f"{version.key} was made from another version of the codes of class {printable(gone[0])} than the store has; "
                    "`d3m distill` brings both up to date"
                )
        self._held: tuple[str, pd.DataFrame] | None = None

    @property
    def precision(self) -> str:
        """As the commit records say; empty: they do not, or all images are decoded."""
        if not self._bundle.generates:
            return ""
        devices = {
            str(p.manifest.provenance.get("hardware", "")).rpartition("device ")[2] for p in self._pools.values()
        }
        if "" in devices:
            return ""
        return "float32 cpu" if devices == {"cpu"} else f"bfloat16 {sorted(devices - {'cpu'})[0].partition(':')[0]}"

    def _table(self, class_name: str) -> pd.DataFrame | None:
        if class_name not in self._pools:
            return None
        if self._held is None or self._held[0] != class_name:
            table = from_parquet(self._pools[class_name].read(synthetic_pool.FILE))
            if self._bundle.has_codes and not is_coded(table):  # the pool has what is generated
                table = self._with_codes(class_name, table)
            self._held = class_name, table.set_index("index")
        return self._held[1]

    def _with_codes(self, class_name: str, generated: pd.DataFrame) -> pd.DataFrame:
        """The pool of a class with its coded images behind what is generated, or with them alone where nothing else was chosen."""
        import pandas as pd

        images = _decoded(self._codes[class_name], self._bundle)
        before = []
        if self._bundle.generates:
            before.append(generated[["index", "image"]])
            images = resize_to_square(images, pool_images(generated.head(1)).shape[1], self._bundle.recipe.channels)
        files = [{"bytes": encode_png(image)} for image in images]
        coded = pd.DataFrame({"index": list(self._numbers[class_name])[: len(files)], "image": files})
        return pd.concat([*before, coded], ignore_index=True)

    def indices(self, class_name: str) -> list[int]:
        """Numbers of the images in the pool of a class that the bundle selects; where it selects none, of all."""
        table, selected = self._table(class_name), self._selected.get(class_name)
        numbers = [] if table is None else sorted(int(index) for index in table.index)
        return numbers if selected is None else [index for index in numbers if index in selected]

    def load(self, class_name: str, index: int) -> np.ndarray:
        """One image."""
        table = self._table(class_name)
        assert table is not None  # an index of it was asked for
        try:
            stored: Any = table.at[index, "image"]
            return decode_png(stored["bytes"])
        except (OSError, ValueError) as error:
            raise ValueError(f"image {index} of {self._pools[class_name].key} cannot be read ({error})") from None

    def strangers(self, class_names: Sequence[str]) -> list[str]:
        """Nothing: a pool is asked for by class."""
        return []


def _decoded(codes: Version | None, bundle: Bundle) -> np.ndarray:
    """The images of a stored code, uint8 ``[N, H, W, C]`` at the stored size; none where it is not stored any more."""
    import numpy as np

    from d3m_assets.evaluation.codecs.reading import read_code

    recipe = bundle.recipe
    shape = recipe.image_height, recipe.image_width, recipe.channels
    if codes is None or not codes.current:
        return np.empty((0, *shape), np.uint8)
    return read_code(codes.read(CODE), shape)
