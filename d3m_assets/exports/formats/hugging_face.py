"""A Hugging Face dataset repository: parquet shards whose schema says what is an image and what a class."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from d3m_assets.datasets.names import folder_name
from d3m_assets.exports.croissant_fields import label_field
from d3m_assets.exports.export_folder import part_of
from d3m_assets.exports.formats.writer import COMMON, CroissantParts, ExportPlan, FormatWriter
from d3m_assets.exports.image_record import image_name
from d3m_assets.exports.stream import GeneratedImage

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

LEAST_SHARDS = 20
"""So that a training on several machines and workers can share them out."""
MAX_ROWS, MAX_SHARD_BYTES = 10_000, 500 * 2**20
"""Most images of a shard, and most bytes of their pixels: what is lost when an export is killed."""
ROWS_OF_A_GROUP = 100
"""Rows that are held and written together, as `datasets` does for images: what a reader has to fetch for one of them."""
_SHARD = re.compile(r"train-\d{5,}-of-\d{5,}\.parquet")


class HuggingFaceWriter(FormatWriter):
    """Writes ``data/train-00000-of-000NN.parquet``; how many images a shard holds is settled before the first one."""

    title = "Hugging Face dataset, parquet"

    def __init__(self, folder: Path, plan: ExportPlan) -> None:
        super().__init__(folder, plan)
        least = max(LEAST_SHARDS, -(-plan.total // MAX_ROWS), -(-plan.raw_bytes // MAX_SHARD_BYTES))
        self.shards = min(plan.total, least)
        self._shard = 0
        self._rows: list[dict[str, Any]] = []
        self._written = 0
        self._file: pq.ParquetWriter | None = None

    @staticmethod
    def check(plan: ExportPlan) -> None:
        """Any class can be held."""

    @staticmethod
    def owns(path: PurePosixPath, plan: ExportPlan) -> bool:
        """Whether a file is a shard or the card."""
        if len(path.parts) == 1:
            return path.name in COMMON
        return path.parts[:-1] == ("data",) and bool(_SHARD.fullmatch(path.name))

    def resume(self) -> int:
        """Count the images of the shards that are complete."""
        (self.folder / "data").mkdir(exist_ok=True)
        while self._shard < self.shards and self._path(self._shard).is_file():
            self._shard += 1
        for part in (self.folder / "data").glob(".*.part"):
            part.unlink()
        self._written = self._begin(self._shard)
        return self._written

    def write(self, image: GeneratedImage) -> None:
        """Add a row; full groups of rows go to disk."""
        record = image.record
        self._rows.append(
            {
                "image": {"bytes": image.png(), "path": f"{folder_name(record.class_name)}/{image_name(record.index)}"},
                "label": image.class_position,
                "index": record.index,
                "prompt": record.prompt,
                "seed": record.seed,
                "selected": record.selected,
                **({"origin": record.origin} if self.plan.with_origin else {}),
            }
        )
        self._written += 1
        last = self._written == self._begin(self._shard + 1)
        if last or len(self._rows) == ROWS_OF_A_GROUP:
            self._write_group()
        if last:
            self._close_shard()

    def finish(self) -> None:
        """Nothing is left to do: the last image has closed the last shard."""

    def front_matter(self) -> Mapping[str, Any]:
        """Which files belong to the split."""
        return {"configs": [{"config_name": "default", "data_files": [{"split": "train", "path": "data/train-*"}]}]}

    def loading_example(self) -> str:
        """By the `datasets` library."""
        return (
            'import datasets\n\ndata = datasets.load_dataset("FOLDER or owner/name", split="train")\n'
            'data[0]["image"], data.features["label"].int2str(data[0]["label"])'
        )

    def croissant(self) -> CroissantParts:
        """Columns of the shards."""
        import mlcroissant as mlc

        files = mlc.FileSet(
            id="parquet", name="parquet", encoding_formats=["application/x-parquet"], includes=["data/*.parquet"]
        )
        image = mlc.Source(
            file_set="parquet", extract=mlc.Extract(column="image"), transforms=[mlc.Transform(json_path="bytes")]
        )
        label = mlc.Source(file_set="parquet", extract=mlc.Extract(column="label"))
        return CroissantParts([files], image, label_field(label))

    def _begin(self, shard: int) -> int:
        """Position of the first image of a shard."""
        return shard * self.plan.total // self.shards

    def _path(self, shard: int) -> Path:
        return self.folder / "data" / f"train-{shard:05d}-of-{self.shards:05d}.parquet"

    def _write_group(self) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        schema = self._schema()
        if self._file is None:
            self._file = pq.ParquetWriter(part_of(self._path(self._shard)), schema, write_page_index=True)
        self._file.write_table(pa.Table.from_pylist(self._rows, schema), row_group_size=ROWS_OF_A_GROUP)
        self._rows = []

    def _close_shard(self) -> None:
        assert self._file is not None
        self._file.close()
        self._file = None
        path = self._path(self._shard)
        part_of(path).replace(path)
        self._shard += 1

    def _schema(self) -> pa.Schema:
        """Columns, with Hugging Face's features of them as metadata."""
        import pyarrow as pa

        features = {
            "image": {"_type": "Image"},
            "label": {"names": self.plan.class_names, "_type": "ClassLabel"},
            "index": {"dtype": "int64", "_type": "Value"},
            "prompt": {"dtype": "string", "_type": "Value"},
            "seed": {"dtype": "string", "_type": "Value"},
            "selected": {"dtype": "bool", "_type": "Value"},
            **({"origin": {"dtype": "string", "_type": "Value"}} if self.plan.with_origin else {}),
        }
        return pa.schema(
            [
                ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
                ("label", pa.int64()),
                ("index", pa.int64()),
                ("prompt", pa.string()),
                ("seed", pa.string()),
                ("selected", pa.bool_()),
                *([("origin", pa.string())] if self.plan.with_origin else []),
            ],
            metadata={"huggingface": json.dumps({"info": {"features": features}}, ensure_ascii=False)},
        )
