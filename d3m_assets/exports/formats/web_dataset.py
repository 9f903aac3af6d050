"""WebDataset: tar shards of samples, ``KEY.png`` with ``KEY.cls`` and ``KEY.json``."""

from __future__ import annotations

import hashlib
import io
import json
import re
import tarfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from d3m_assets.errors import BundleError
from d3m_assets.exports.croissant_fields import label_field
from d3m_assets.exports.export_folder import part_of, write_whole
from d3m_assets.exports.formats.writer import COMMON, CroissantParts, ExportPlan, FormatWriter
from d3m_assets.exports.stream import GeneratedImage
from d3m_assets.terminal import printable

DATASET = "dataset.json"
LEAST_SHARDS = 20
"""So that workers can share them out."""
MAX_SAMPLES, MAX_SHARD_BYTES = 10_000, 500 * 2**20
"""A shard is closed when it has as many samples or bytes."""
_FILE = re.compile(r"train-\d{6,}(\.tar|_stats\.json)")


class WebDatasetWriter(FormatWriter):
    """Writes ``train-000000.tar`` and, when it is whole, ``train-000000_stats.json``: the shard's completion mark."""

    title = "WebDataset, tar shards"

    def __init__(self, folder: Path, plan: ExportPlan) -> None:
        super().__init__(folder, plan)
        self._most_samples = max(1, min(MAX_SAMPLES, plan.total // LEAST_SHARDS))
        self._shard = 0
        self._samples = 0
        self._archive: tarfile.TarFile | None = None

    @staticmethod
    def check(plan: ExportPlan) -> None:
        """Any class can be held: keys are made of numbers."""

    @staticmethod
    def owns(path: PurePosixPath, plan: ExportPlan) -> bool:
        """Whether a file is a shard, its mark, the list of classes or the card."""
        return len(path.parts) == 1 and (path.name in COMMON | {DATASET} or bool(_FILE.fullmatch(path.name)))

    def resume(self) -> int:
        """Count the samples of the shards that are marked as complete."""
        done = 0
        while self._mark(self._shard).is_file():
            mark = self._mark(self._shard)
            try:
                stats = json.loads(mark.read_text(encoding="utf-8"))
                samples, size = int(stats["samples"]), int(stats["bytes"])
            except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
                raise BundleError(
                    f"{mark} is damaged ({printable(repr(error))}); remove it, and its shard is written again"
                ) from None
            path = self._path(self._shard)
            if not path.is_file() or path.stat().st_size != size:
                break
            done, self._shard = done + samples, self._shard + 1
        return done

    def write(self, image: GeneratedImage) -> None:
        """Add a sample, and close the shard when it is full."""
        if self._archive is None:
            self._archive = tarfile.open(  # noqa: SIM115 - closed with the shard
                part_of(self._path(self._shard)), "w", format=tarfile.PAX_FORMAT
            )
        record = image.record
        # No dot, which would end the key; unique over classes, whatever they are called.
        key = f"{image.class_position:05d}_{record.index:08d}"
        facts = {"label": image.class_position, **record.facts(with_origin=self.plan.with_origin)}
        text = json.dumps(facts, ensure_ascii=False).encode()
        for suffix, data in (("png", image.png()), ("cls", b"%d" % image.class_position), ("json", text)):
            member = tarfile.TarInfo(f"{key}.{suffix}")  # without time and owner, so that equal images give equal bytes
            member.size = len(data)
            self._archive.addfile(member, io.BytesIO(data))
        # Nothing needs the list of what was written, which would grow with the shard.
        self._archive.members.clear()  # type: ignore[attr-defined]
        self._samples += 1
        if self._samples == self._most_samples or self._archive.offset >= MAX_SHARD_BYTES:
            self._close_shard()

    def finish(self) -> None:
        """Close the last shard, and say which class a number stands for."""
        if self._archive is not None:
            self._close_shard()
        facts = {
            "format": "WebDataset",
            "shards": f"train-{{000000..{self._shard - 1:06d}}}.tar",
            "samples": self.plan.total,
            "classes": self.plan.class_names,
            "bundle": self.plan.bundle.sha256,
        }
        write_whole(self.folder / DATASET, (json.dumps(facts, indent=1, ensure_ascii=False) + "\n").encode())

    def front_matter(self) -> Mapping[str, Any]:
        """Which files belong to the split."""
        return {"configs": [{"config_name": "default", "data_files": [{"split": "train", "path": "train-*.tar"}]}]}

    def loading_example(self) -> str:
        """By the webdataset library."""
        return (
            "import json, webdataset\n\n"
            f'about = json.load(open("FOLDER/{DATASET}"))  # about["classes"][label] is a name\n'
            'data = webdataset.WebDataset("FOLDER/" + about["shards"], shardshuffle=100)\n'
            'for image, label in data.shuffle(1000).decode("pil").to_tuple("png", "cls"):\n    ...'
        )

    def croissant(self) -> CroissantParts:
        """Images in the shards, whose names begin with the label."""
        import mlcroissant as mlc

        shards = [
            mlc.FileObject(
                id=stats["shard"],
                name=stats["shard"],
                content_url=stats["shard"],
                encoding_formats=["application/x-tar"],
                sha256=stats["sha256"],
            )
            for stats in (json.loads(self._mark(shard).read_text(encoding="utf-8")) for shard in range(self._shard))
        ]
        images = mlc.FileSet(
            id="png",
            name="png",
            encoding_formats=["image/png"],
            includes=["*.png"],
            contained_in=[shard.id for shard in shards],
        )
        image = mlc.Source(file_set="png", extract=mlc.Extract(file_property="content"))
        label = mlc.Source(
            file_set="png",
            extract=mlc.Extract(file_property="filename"),
            transforms=[mlc.Transform(regex=r"^(\d+)_")],
        )
        return CroissantParts([*shards, images], image, label_field(label))

    def _path(self, shard: int) -> Path:
        return self.folder / f"train-{shard:06d}.tar"

    def _mark(self, shard: int) -> Path:
        return self.folder / f"train-{shard:06d}_stats.json"

    def _close_shard(self) -> None:
        assert self._archive is not None
        self._archive.close()
        path = self._path(self._shard)
        part_of(path).replace(path)
        with path.open("rb") as content:
            digest = hashlib.file_digest(content, "sha256").hexdigest()
        stats = {"shard": path.name, "samples": self._samples, "bytes": path.stat().st_size, "sha256": digest}
        write_whole(self._mark(self._shard), (json.dumps(stats) + "\n").encode())
        self._archive, self._samples = None, 0
        self._shard += 1
