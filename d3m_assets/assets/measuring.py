"""What the assets that train students have in common: rows in, a table with one line a student out.

The unit of measurement is one trained student. Its result is kept in the store under the hash of training set, recipe,
seed, labels and test set, so a new baseline, seed, budget or network trains only what is new, and a run that is stopped
in the middle of a table goes on with the next student.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from d3m_assets.assets.context import Context, Item
from d3m_assets.assets.files import from_parquet, to_parquet
from d3m_assets.assets.pool_labels import stored_classes
from d3m_assets.assets.raw_dataset import test_images
from d3m_assets.assets.rows import Row, labels_fingerprint
from d3m_assets.assets.teacher_model import TeacherFiles, loaded_teacher, read_teacher
from d3m_assets.compute.devices import own_device
from d3m_assets.compute.shared import Shared
from d3m_assets.datasets.labelled_images import LabelledImages
from d3m_assets.errors import D3MError
from d3m_assets.evaluation import scores, stacking, students
from d3m_assets.evaluation.settings import LabelKind, StudentSettings
from d3m_assets.planning.asset import Asset, Made
from d3m_assets.progress import Progress
from d3m_assets.store import ArtefactKey

if TYPE_CHECKING:
    import pandas as pd

    from d3m_assets.evaluation.labels import Labelling
    from d3m_assets.evaluation.statistics import Part

FILE = "metrics.parquet"
STUDENTS = "students"
"""Kind under which the store keeps results of students."""
CODE_VERSION = f"{students.CODE_VERSION}.{stacking.CODE_VERSION}.{scores.CODE_VERSION}"
"""Of the library modules that train and measure students."""
TABLE_CODE_VERSION = f"{CODE_VERSION}.2"
"""Of tables of students; 2: they say what was chosen for a row."""
PREVIEW_COLUMNS = [
    "method",
    "budget",
    "labels",
    "architecture",
    "augmentation",
    "mean",
    "half_width",
    "n",
    "n_train_images",
]


class MeasuredAsset(Asset):
    """An asset whose artefacts are rows of the table; it says which in :meth:`rows`."""

    group = "evaluation"
    kinds = frozenset({"pytorch"})
    code_version = TABLE_CODE_VERSION
    device = True
    variants: ClassVar[tuple[str, ...]] = ()
    """Values of ``evaluation.variants`` that add rows to this asset."""

    def rows(self, context: Context, item: Item) -> tuple[list[Row], Mapping[str, bytes]]:
        """The rows to measure, and files to store beside the table."""
        raise NotImplementedError(f"{type(self).__name__} names no rows")

    def settings(self, context: Context, item: Item) -> dict[str, Any]:
        """How students are trained and tested, and which rows there are."""
        settings = context.settings
        described: dict[str, Any] = {
            "students": settings.students.model_dump(mode="json", exclude={"recipe"}),
            "device": context.device_kind,
            "image": context.image_shape,
        }
        if item.key.budget is not None:
            described["bytes_per_class"] = item.budget.bytes(context.dataset.shape)
        described |= labels_fingerprint(context)
        networks = [a for a in settings.evaluation.architectures if a != settings.students.architecture]
        if networks:
            excluded = {"recipe", "seeds"}
            dumps = [settings.students.of(a).model_dump(mode="json", exclude=excluded) for a in networks]
            described["architectures"] = dumps
        if variants := self.chosen_variants(context, item):
            described["variants"] = variants
        return described

    def chosen_variants(self, context: Context, item: Item) -> list[str]:
        """The variants of this asset that the settings ask for."""
        return [v for v in context.settings.evaluation.variants if v in self.variants]

    def make(self, context: Context, items: Sequence[Item]) -> Iterator[Made]:
        """Train the students of all rows of all items that are not known yet; an item is done when its last one is."""
        tables: list[_Table] = []
        for item in items:
            try:
                tables.append(self._table(context.for_item(item), item))
            except D3MError as error:
                yield Made(item.key, error=error)
        jobs = [(table, job) for table in tables for job in table.jobs]
        yield from (self._made(context, table) for table in tables if not table.jobs)
        work = [job for _, job in jobs]
        for index, result in context.map_in_workers(self.name, _train, work, [job.label for job in work]):
            table, job = jobs[index]
            if isinstance(result, D3MError):
                table.error = table.error or result
            else:
                for seed, student in zip(job.seeds, result.to_dict("records"), strict=True):
                    table.results[job.digests[seed]] = _plain(student)
                    context.records.keep_record(STUDENTS, job.digests[seed], table.results[job.digests[seed]])
            table.unfinished -= 1
            if not table.unfinished:
                yield self._made(context, table)

    def _table(self, context: Context, item: Item) -> _Table:
        rows, files = self.rows(context, item)
        images = test_images(context, reader=str(item.key))
        test = context.once("test set", lambda: _Set.of(images))
        teacher = Shared(read_teacher(context)) if any(row.labels != "hard" for row in rows) else None
        table = _Table(item, dict(files), len(test.images), teacher.value.fingerprint if teacher else "")
        if teacher is not None:
            table.files |= self.teacher_files(context, teacher.value, test.images)
        distinct = _DistinctSets()
        # All training sets before any student: one that cannot be made must not leave a table with fewer rows.
        for row in rows:
            sets = {seed: distinct.of(row.training_sets(seed)) for seed in row.replicates}
            for settings in row.settings:
                students = [
                    _Student(row, settings, seed, _student_digest(context, row, settings, seed, train, test, teacher))
                    for seed, train in sets.items()
                ]
                table.students += students
                unknown = [student for student in students if not table.knows(context, student.digest)]
                table.jobs += _jobs(context, item, row, settings, unknown, sets, test, teacher)
        table.unfinished = len(table.jobs)
        return table

    def teacher_files(self, context: Context, teacher: TeacherFiles, test: LabelledImages) -> Mapping[str, bytes]:
        """Files about the teacher to store beside the table."""
        return {}

    def _made(self, context: Context, table: _Table) -> Made:
        from d3m_assets.evaluation.statistics import parts as parts_of

        item = table.item
        if table.error is not None:
            return Made(item.key, error=table.error)
        metrics = table.frame()
        accuracy = {
            _metric_name(str(method), "" if item.key.budget else str(budget), part, context.settings.students): float(
                of_row["accuracy"].mean()
            )
            for part in parts_of(metrics)
            for (method, budget), of_row in part.of(metrics).groupby(["method", "budget"])
        }
        counts = {"students": len(metrics), "test images": table.test_images, "students trained": table.trained}
        return Made(item.key, {FILE: to_parquet(metrics), **table.files}, {**accuracy, **counts})

    def preview(self, context: Context, item: Item) -> dict[str, Any]:
        """Mean accuracy of every row."""
        from d3m_assets.evaluation.statistics import summarize

        summary = summarize(from_parquet(context.inputs.read(item.key, FILE)))
        return {"rows": len(summary), "summary": summary[PREVIEW_COLUMNS]}


@dataclass(frozen=True)
class _Student:
    """One line of a table."""

    row: Row
    settings: StudentSettings
    seed: int
    digest: str


@dataclass(frozen=True)
class StudentJob:
    """Students of one row and one network that a worker trains.

    Attributes:
        method: Name of the row.
        budget: Of the row, for progress lines.
        label: What it is about, for a progress line.
        sets: Seed to training set.
        test: Images to evaluate on.
        settings: Recipe; its seeds are those of ``sets``.
        n_classes: Number of classes.
        device: Torch device, where the worker was not given one of its own.
        labels: How training sets are labelled.
        teacher: Gives soft labels; None: labels are hard.
        temperature: What its logits are divided by; None: as calibrated.
        stored_classes: Probabilities that a stored soft label keeps; None: all.
        digests: Seed to the hash that the student's result is kept under.
    """

    method: str
    budget: str
    label: str
    sets: Mapping[int, Shared[LabelledImages]]
    test: Shared[LabelledImages]
    settings: StudentSettings
    n_classes: int
    device: str
    labels: LabelKind
    teacher: Shared[TeacherFiles] | None
    temperature: float | None
    stored_classes: int | None
    digests: Mapping[int, str]

    @property
    def seeds(self) -> tuple[int, ...]:
        """Seeds of its students."""
        return self.settings.seeds


@dataclass
class _Table:
    """A table in the making."""

    item: Item
    files: dict[str, bytes]
    test_images: int
    teacher: str = ""
    students: list[_Student] = field(default_factory=list)
    jobs: list[StudentJob] = field(default_factory=list)
    results: dict[str, dict[str, Any]] = field(default_factory=dict)
    unfinished: int = 0
    error: D3MError | None = None
    _asked: set[str] = field(default_factory=set)

    def _recipe(self, recipe: str) -> str:
        """The recipe of a student, with the teacher by its name of today: an equal one may have had another fingerprint."""
        described = json.loads(recipe)
        if "labels" in described:
            described["labels"]["teacher"] = self.teacher
        return json.dumps(described, sort_keys=True)

    def knows(self, context: Context, digest: str) -> bool:
        """Whether a student need not be trained for this table: it was trained before, or already is to be."""
        if digest in self.results or digest in self._asked:
            return True
        self._asked.add(digest)
        known = None if context.force else context.records.record(STUDENTS, digest)
        if known is not None:
            self.results[digest] = known
        return known is not None

    @property
    def trained(self) -> int:
        """Students that were not known before."""
        return sum(len(job.seeds) for job in self.jobs)

    def frame(self) -> pd.DataFrame:
        """One line a student: :data:`d3m_assets.evaluation.metrics.COLUMNS`, the row's detail, and the student's hash."""
        import pandas as pd

        lines = []
        for student in self.students:
            row, result = student.row, self.results[student.digest]
            of_row = {
                "method": row.method,
                "budget": row.budget or self.item.key.budget or "",
                "labels": row.labels,
                "distillation": row.replicates[student.seed],
                "bytes_per_class": row.bytes_per_class,
                "detail": row.detail,
                "student": student.digest,
                "recipe": self._recipe(result["recipe"]),
            }
            accuracies = [math.nan if value is None else value for value in result["class_accuracy"]]
            lines.append({**result, **of_row, "class_accuracy": accuracies})
        from d3m_assets.evaluation.metrics import COLUMNS

        return pd.DataFrame(lines, columns=[*COLUMNS, "detail", "student"])


def read_metrics(context: Context, key: ArtefactKey) -> pd.DataFrame:
    """A stored table of students."""
    return from_parquet(context.inputs.read(key, FILE))


def digest_of_images(images: LabelledImages) -> str:
    """SHA-256 in hex of images with their labels, hard and soft."""
    digest = hashlib.sha256(json.dumps([images.images.shape, images.split]).encode())
    digest.update(images.images.tobytes())
    digest.update(images.labels.astype("int64").tobytes())
    if images.probabilities is not None:
        digest.update(images.probabilities.astype("float64").tobytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class _Set:
    """Images on their way to workers, which get them once."""

    shared: Shared[LabelledImages]
    digest: str

    @classmethod
    def of(cls, images: LabelledImages) -> _Set:
        return cls(Shared(images), digest_of_images(images))

    @property
    def images(self) -> LabelledImages:
        return self.shared.value


class _DistinctSets:
    """Training sets; one that serves several seeds or networks is hashed and sent once."""

    def __init__(self) -> None:
        self._known: dict[int, _Set] = {}
        self._by_digest: dict[str, _Set] = {}
        self._held: list[LabelledImages] = []

    def of(self, images: LabelledImages) -> _Set:
        if id(images) not in self._known:
            hashed = _Set.of(images)
            # The object is held with the set, so that its id stays its own; equal images are sent once.
            self._known[id(images)] = self._by_digest.setdefault(hashed.digest, hashed)
            self._held.append(images)
        return self._known[id(images)]


def _student_digest(
    context: Context,
    row: Row,
    settings: StudentSettings,
    seed: int,
    train: _Set,
    test: _Set,
    teacher: Shared[TeacherFiles] | None,
) -> str:
    """Hash of everything that decides about one student."""
    described: dict[str, Any] = {
        "train": train.digest,
        "test": test.digest,
        "recipe": settings.model_dump(mode="json", exclude={"recipe", "seeds"}),
        "seed": seed,
        "classes": len(context.dataset.classes),
        "image": context.image_shape,
        "device": context.device_kind,
        "code_version": CODE_VERSION,
    }
    if row.labels != "hard" and teacher is not None:
        of_labels = {name: value for name, value in labels_fingerprint(context).items() if name != "labels"}
        described["labels"] = {"kind": row.labels, "teacher": teacher.value.content, **of_labels}
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()


def _jobs(
    context: Context,
    item: Item,
    row: Row,
    settings: StudentSettings,
    students: Sequence[_Student],
    sets: Mapping[int, _Set],
    test: _Set,
    teacher: Shared[TeacherFiles] | None,
) -> list[StudentJob]:
    """The students of one row and network that are to be trained: on a processor one a job.

    On a GPU as many together as there are of a distilled row, so that further students take no more memory.
    """
    together = 1 if context.workers.on_cpu else len(context.settings.students.seeds)
    groups = [students[begin : begin + together] for begin in range(0, len(students), together)]
    soft = "" if row.labels == "hard" else row.labels
    network = settings.architecture if len(row.settings) > 1 else ""
    budget = row.budget or item.key.budget or ""
    label = " ".join(part for part in (row.method, soft, network, budget) if part)
    return [
        StudentJob(
            method=row.method,
            budget=budget,
            label=label,
            sets={student.seed: sets[student.seed].shared for student in group},
            test=test.shared,
            settings=settings.model_copy(update={"seeds": tuple(student.seed for student in group)}),
            n_classes=len(context.dataset.classes),
            device=context.device,
            labels=row.labels,
            teacher=teacher if row.labels != "hard" else None,
            temperature=context.settings.evaluation.temperature,
            stored_classes=stored_classes(context),
            digests={student.seed: student.digest for student in group},
        )
        for group in groups
    ]


def _train(job: StudentJob, progress: Progress) -> pd.DataFrame:
    from d3m_assets.evaluation.metrics import student_metrics

    device = own_device() or job.device
    return student_metrics(
        job.method,
        lambda seed: job.sets[seed].value,
        job.test.value,
        job.settings,
        budget=job.budget,
        n_classes=job.n_classes,
        labelling=_labelling(job, device),
        device=device,
        progress=progress,
    )


def _labelling(job: StudentJob, device: str) -> Labelling:
    from d3m_assets.evaluation.labels import HARD, Labelling

    if job.labels == "hard" or job.teacher is None:
        return HARD
    files = job.teacher.value
    return Labelling(job.labels, loaded_teacher(files, device), files.fingerprint, job.temperature, job.stored_classes)


def _plain(student: Mapping[str, Any]) -> dict[str, Any]:
    """A student's line as the store gives it back; what is not a number becomes None."""
    from d3m_assets.store import canonical_json

    return json.loads(canonical_json(dict(student), "a student"))


def _metric_name(method: str, budget: str, part: Part, students: StudentSettings) -> str:
    """What Dagster plots the accuracy of a method under, over all runs; so other rows of a table do not change it."""
    words = [f"accuracy {method}", *([budget] if budget else [])]
    words += [] if part.labels == "hard" else [part.labels]
    words += [] if part.architecture == students.architecture else [part.architecture]
    words += [] if part.augmentation == students.augmentation else ["no augmentation"]
    return ", ".join(words)
