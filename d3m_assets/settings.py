"""Typed settings: the only place where the environment and the settings file are read.

Precedence: arguments (the command line) > environment (``D3M_SEED``, ``D3M_INVERSION__STEPS``) > settings
file (``d3m.toml`` in the working directory, or the file named by ``$D3M_SETTINGS``) > defaults. Front doors
call :func:`load_settings`; everything else is handed the parts of :class:`Settings` that it needs.
"""

from __future__ import annotations

import difflib
import itertools
import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import pydantic_settings
from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

from d3m_assets.addresses import masked
from d3m_assets.compute.settings import ComputeSettings, PlanSettings
from d3m_assets.datasets.settings import ImageSettings
from d3m_assets.distillation.settings import (
    BOTH,
    PROMPTS,
    GenerationSettings,
    InversionSettings,
    Payload,
    PromptSettings,
    SelectionSettings,
)
from d3m_assets.errors import BudgetError, SettingsError
from d3m_assets.evaluation.settings import (
    BASELINE_STUDENTS,
    DISTILLATIONS,
    AuditSettings,
    EvaluationSettings,
    StudentSettings,
    TeacherSettings,
)
from d3m_assets.foundation.files import EMBEDDED
from d3m_assets.ledger import Budget
from d3m_assets.setting_types import Positive, Section, as_list, as_list_of_texts, distinct

ENVIRONMENT_PREFIX = "D3M_"
FILE_VARIABLE = "D3M_SETTINGS"
FILE_NAME = "d3m.toml"
FRONTIER_BUDGETS = ("ipc-1", "ipc-2", "ipc-5", "ipc-10", "ipc-20")
"""Budgets of ``evaluation.table=frontier`` unless given."""
EMBEDDED_GUIDANCE = 1.0
"""Guidance of the embedded model unless given. It knows characters well enough to be asked without guidance, and its samples
then vary more; what is not recognised is not selected (``benchmarks/results/selection-2026-11-28.md``)."""
EMBEDDED_STEPS = 50
"""Steps of an inversion that starts from images, unless given (``benchmarks/results/start-2026-11-29.md``)."""
SECRETS = frozenset({"automation.failure_webhook"})
"""Settings whose value no message shows."""


def _budget_name(value: str) -> str:
    # The name stays text: it is a partition key, a folder name and part of the settings' dump.
    try:
        return Budget.parse(value).name
    except BudgetError as error:
        raise ValueError(str(error)) from None


def _device(value: str) -> str:
    if not re.fullmatch(r"auto|cpu|mps|(cuda|xpu)(:\d+)?", value):
        raise ValueError(f'"{value}" is not a device; give auto, cpu, mps, cuda or cuda:1')
    return value


_CRON_FIELDS = (
    ("minute", 0, 59, ()),
    ("hour", 0, 23, ()),
    ("day of the month", 1, 31, ()),
    ("month", 1, 12, ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")),
    ("day of the week", 0, 7, ("sun", "mon", "tue", "wed", "thu", "fri", "sat")),
)
"""Name, lowest and highest number of each field of a cron schedule, and names that stand for numbers."""


def _cron(value: str) -> str:
    # Checked here and not by Dagster's parser: settings are read without importing Dagster.
    text = value.strip()
    if re.fullmatch(r"@(hourly|daily|weekly|monthly)", text):
        return text
    fields = text.split()
    if len(fields) != len(_CRON_FIELDS):
        raise ValueError(f'"{value}" is not a cron schedule; give five fields, for example "0 2 * * *"')
    for field, (name, lowest, highest, names) in zip(fields, _CRON_FIELDS, strict=True):
        for part in field.lower().split(","):
            found = re.fullmatch(r"(\*|([0-9]{1,2}|[a-z]{3})(-([0-9]{1,2}|[a-z]{3}))?)(/0*[1-9][0-9]*)?", part)
            ends = [end for end in (found[2], found[4]) if end] if found else []
            if not found or not all(e in names or (e.isdigit() and lowest <= int(e) <= highest) for e in ends):
                raise ValueError(
                    f'"{field}" is no {name} of a cron schedule: it takes {lowest} to {highest}, * , - and /, as in "0 2 * * *"'
                )
    return text


def _paths(value: Any) -> Any:
    # A pattern may begin with a bracket, as JSON does.
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            return as_list(value)
        except ValueError:
            return [part.strip() for part in value.split(",")]
    return as_list(value)


def _web_address(value: SecretStr | None) -> SecretStr | None:
    # The message must not hold the address: that of a webhook is as good as a password.
    if value is not None and not re.fullmatch(r"https?://[^\s/]\S*", value.get_secret_value()):
        raise ValueError("it is no address; give one that begins with https:// or http://")
    return value


Budgets = Annotated[
    tuple[Annotated[str, AfterValidator(_budget_name)], ...],
    NoDecode,
    BeforeValidator(as_list),
    Field(min_length=1),
    AfterValidator(distinct),
]


SectionType = TypeVar("SectionType", bound=Section)


def _with_default(section: SectionType, name: str, value: object) -> SectionType:
    """A section with another default of a setting, which counts as not given."""
    changed = section.model_copy()
    changed.__dict__[name] = value
    return changed


class AutomationSettings(Section):
    """What Dagster starts by itself."""

    enabled: bool = Field(default=False, description="Whether schedules and sensors are running when first loaded.")
    cron: Annotated[str, AfterValidator(_cron)] = Field(
        default="0 2 * * *", description="When the schedule looks for work."
    )
    max_partitions_per_tick: Positive = Field(
        default=50, description="Most partitions of each asset that one tick requests."
    )
    verify_cron: Annotated[str, AfterValidator(_cron)] = Field(
        default="0 5 * * *",
        description="When all stored artefacts are read and checked; passed over while a run makes some.",
    )
    max_age_hours: float | None = Field(
        default=None,
        gt=0,
        description="Hours after which Dagster shows the report as overdue when no run made or confirmed it; none: never.",
    )
    failure_webhook: Annotated[SecretStr | None, AfterValidator(_web_address)] = Field(
        default=None,
        description="Address that failures are posted to as JSON, with a text that chat services show; secret.",
    )
    failure_command: Annotated[
        tuple[Annotated[str, Field(min_length=1)], ...], NoDecode, BeforeValidator(as_list_of_texts)
    ] = Field(
        default=(),
        description="Program and arguments, started without a shell, that get the same JSON on their standard input.",
    )
    ui_url: str = Field(
        default="", description="Address of Dagster's web server, for links in messages about failures."
    )


class ExecutionSettings(Section):
    """How Dagster runs the steps of assets; no part of a fingerprint."""

    executor: Literal["in-process", "processes", "k8s", "ray"] = Field(
        default="in-process",
        description='"in-process": all steps in the process of the run; "processes": each a process on its machine; '
        '"k8s": each a Kubernetes job (dagster-k8s); "ray": each a Ray job (dagster-ray).',
    )


class Settings(BaseSettings):
    """Everything that can be set. Build it with :func:`load_settings`, which explains what is wrong."""

    model_config = SettingsConfigDict(
        env_prefix=ENVIRONMENT_PREFIX,
        env_nested_delimiter="__",
        env_ignore_empty=True,
        env_parse_none_str="none",
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
    )

    dataset: str = Field(
        default="digits",
        min_length=1,
        description='"digits", or path or fsspec URL of an image folder, zip file, Hugging Face dataset, WebDataset or table.',
    )
    exclude: Annotated[tuple[Annotated[str, Field(min_length=1)], ...], NoDecode, BeforeValidator(_paths)] = Field(
        default=(),
        description="Images and folders that are left out: paths below the dataset such as train/7/001.png, patterns "
        "(*/7, train/**/*.gif), or @FILE with one a line. In the environment: comma separated or JSON.",
    )
    name: str = Field(
        default="",
        description="Name of the dataset in bundles and report, and of its folder in the store; empty: last part of its path.",
    )
    foundation: str = Field(
        default="embedded",
        min_length=1,
        description='"embedded", path or hub id of a diffusers text-to-image pipeline, or path of a single-file checkpoint.',
    )
    foundation_config: str | None = Field(
        default=None,
        min_length=1,
        description="Diffusers folder, or hub id, that gives a single-file checkpoint its configurations and tokenizer.",
    )
    foundation_revision: str | None = Field(default=None, min_length=1, description="Commit or tag of a hub model.")
    imported_embeddings: Path | None = Field(
        default=None,
        description="Folder of textual-inversion files that you already have, each named after its class: these classes "
        "are not inverted.",
    )
    payload: Payload = Field(
        default="prompts",
        description="What a class stores within its budget: prompts (learned vectors that images are generated from), codes "
        "(coded real images), both, or auto: of each budget prompts or codes, whichever teaches more on the validation part.",
    )
    codes_share: float = Field(
        default=0.25,
        gt=0,
        lt=1,
        description="Part of the bytes of a class that image codes get with payload=both; vectors and selection get the rest.",
    )
    budgets: Budgets = Field(
        default=("ipc-1", "ipc-5"),
        description="Bytes per class: ipc-N, NB, NKiB or NMiB. In the environment: comma separated or JSON.",
    )
    home: Path = Field(
        default=Path("data/home"),
        description="Folder of the Dagster instance, caches, digits and reports.",
    )
    storage: str = Field(default="", description="Path or fsspec URL of the artefact stores; empty: <home>/store.")
    seed: int = Field(default=0, ge=0, lt=2**63, description="Root of every random number but the students' seeds.")
    device: Annotated[str, AfterValidator(_device)] = Field(
        default="auto", description="auto, cpu, mps, cuda or cuda:N."
    )
    compile_unet: bool = Field(
        default=False,
        description="Compile the U-Net with torch.compile: a minute or more of waiting, then faster on a GPU.",
    )
    workers: Positive | None = Field(
        default=None, description="Processes that share the work on a CPU; none: one for each core."
    )
    latent_cache_gib: float = Field(
        default=4.0, ge=0, description="Most disk that cached latents of training images take, in GiB; 0: none."
    )
    validation_fraction: float = Field(
        default=0.1,
        ge=0,
        le=0.5,
        description="Part of the train split set aside for choices, by hash of the image.",
    )
    images: ImageSettings = Field(
        default=ImageSettings(), description="How the images of the dataset are found and read."
    )
    prompts: PromptSettings = Field(default=PromptSettings(), description="How a class is put into words.")
    inversion: InversionSettings = Field(default=InversionSettings(), description="How embeddings are learned.")
    generation: GenerationSettings = Field(
        default=GenerationSettings(), description="How the synthetic pool is generated."
    )
    selection: SelectionSettings = Field(
        default=SelectionSettings(), description="Which of the generated samples are kept."
    )
    students: StudentSettings = Field(default=StudentSettings(), description="How training sets are measured.")
    evaluation: EvaluationSettings = Field(default=EvaluationSettings(), description="Which rows the table has.")
    teacher: TeacherSettings = Field(default=TeacherSettings(), description="Who gives soft labels and features.")
    audit: AuditSettings = Field(default=AuditSettings(), description="How pools are searched for faults.")
    compute: ComputeSettings = Field(default=ComputeSettings(), description="Where the work is done.")
    plan: PlanSettings = Field(
        default=PlanSettings(), description="What a job is estimated for, and when it is asked about."
    )
    execution: ExecutionSettings = Field(
        default=ExecutionSettings(), description="How Dagster runs the steps of assets."
    )
    automation: AutomationSettings = Field(default=AutomationSettings(), description="What Dagster starts by itself.")

    @model_validator(mode="after")
    def _enough_students(self) -> Settings:
        """Every distillation has as many students as the others, so that none weighs more than another."""
        if self.distillations > len(self.students.seeds) or len(self.students.seeds) % self.distillations:
            raise ValueError(
                f"evaluation.distillations is {self.distillations}, but students.seeds has {len(self.students.seeds)}; "
                "give a number that divides that of the seeds: 1, which all students share, up to one for each student"
            )
        return self

    @model_validator(mode="after")
    def _what_codes_need(self) -> Settings:
        """Codes are chosen on validation images, and leave no room for what is charged beside the payload."""
        if self.payload == PROMPTS:
            return self
        if not self.validation_fraction:
            raise ValueError(
                f"payload={self.payload} is decided on the validation part, but validation_fraction is 0, so there is none; give "
                "validation_fraction=0.1, or payload=prompts"
            )
        if self.imported_embeddings is not None:
            raise ValueError(
                f"imported_embeddings take the whole budget of their class, which payload={self.payload} gives to codes or "
                "may give to them; leave one of the two out"
            )
        if "soft stored" in self.evaluation.labels:
            raise ValueError(
                f"with payload={self.payload} a class has as many images as its bytes code, so labels that are stored with images "
                "would take another share of every budget; leave 'soft stored' out of evaluation.labels, or give payload=prompts"
            )
        return self

    @model_validator(mode="after")
    def _something_to_share(self) -> Settings:
        """Nothing is shared out unless a class has both."""
        if self.payload != BOTH and "codes_share" in self.model_fields_set:
            raise ValueError(
                f"codes_share says what image codes get beside prompts, but with payload={self.payload} a class does not have "
                "both; leave it out, or give payload=both"
            )
        return self

    @model_validator(mode="after")
    def _budgets_of_the_table(self) -> Settings:
        """The frontier is distilled at more budgets, unless they are given."""
        if self.evaluation.table == "frontier" and "budgets" not in self.model_fields_set:
            self.__dict__["budgets"] = FRONTIER_BUDGETS
        return self

    @model_validator(mode="after")
    def _guidance_of_the_model(self) -> Settings:
        """The embedded model is guided less than others, unless it is said how much."""
        if self.foundation == EMBEDDED and "guidance_scale" not in self.generation.model_fields_set:
            self.__dict__["generation"] = _with_default(self.generation, "guidance_scale", EMBEDDED_GUIDANCE)
        return self

    @model_validator(mode="after")
    def _steps_of_the_model(self) -> Settings:
        """From images there is a shorter way to go than from words, unless it is said how far."""
        given = self.inversion
        auto = given.initialization == "auto" and self.prompts.initializer is None
        by_images = given.directional and (auto or given.initialization == "images")
        if self.foundation == EMBEDDED and by_images and "steps" not in given.model_fields_set:
            self.__dict__["inversion"] = _with_default(given, "steps", EMBEDDED_STEPS)
        return self

    @property
    def distillations(self) -> int:
        """``evaluation.distillations``, or what it is unless given."""
        if self.evaluation.distillations is not None:
            return self.evaluation.distillations
        students = len(self.students.seeds)
        if self.evaluation.table == "full":
            return students
        return next(count for count in range(min(DISTILLATIONS, students), 0, -1) if students % count == 0)

    def baseline_seeds(self, *, drawn: bool) -> tuple[int, ...]:
        """Seeds of the students of a row that nothing is distilled for: ``students.seeds``, then the next numbers.

        Args:
            drawn: Whether its images are drawn at random, rather than chosen.
        """
        seeds = self.students.seeds
        wanted = self.evaluation.baseline_students or (BASELINE_STUDENTS if self.distillations > 1 else len(seeds))
        further = (seed for seed in itertools.count() if seed not in seeds)
        return (*seeds, *itertools.islice(further, max(0, (wanted if drawn else wanted // 2) - len(seeds))))

    @property
    def dataset_name(self) -> str:
        """``name``, or last part of the dataset's path; a folder called digits is not the built-in ``digits``."""
        if self.name or self.dataset == "digits":
            return self.name or self.dataset
        path = (
            masked(self.dataset)
            if "://" in self.dataset
            else os.path.normpath(Path(self.dataset).expanduser().absolute())
        )
        last = path.rstrip("/\\").replace("\\", "/").rsplit("/", 1)[-1] or "dataset"
        return "digits folder" if last == "digits" else last

    @property
    def storage_url(self) -> str:
        """Where the artefacts of this dataset are kept: a folder of its own in ``storage``, or in ``home/store``."""
        from d3m_assets.datasets.names import class_key

        root = self.storage or str(self.home.absolute() / "store")
        return f"{root}{'' if root.endswith('/') else '/'}{class_key(self.dataset_name)}"

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Order the sources, first wins: arguments, environment, settings file."""
        file = pydantic_settings.TomlConfigSettingsSource(settings_cls, toml_file=settings_file())
        return init_settings, env_settings, file


_left_aside: ContextVar[bool] = ContextVar("settings file left aside", default=False)


@contextmanager
def settings_file_left_aside() -> Iterator[None]:
    """Read settings as if there were no file."""
    token = _left_aside.set(True)
    try:
        yield
    finally:
        _left_aside.reset(token)


def settings_file() -> Path | None:
    """The settings file in force, or None.

    Raises:
        SettingsError: ``$D3M_SETTINGS`` names a file that does not exist.
    """
    if _left_aside.get():
        return None
    if named := os.environ.get(FILE_VARIABLE):
        if not Path(named).is_file():
            raise SettingsError(f"${FILE_VARIABLE} names {named}, which is no file. Correct or unset the variable.")
        return Path(named)
    return Path(FILE_NAME) if Path(FILE_NAME).is_file() else None


def load_settings(**overrides: Any) -> Settings:
    """Read all sources and check them.

    Args:
        **overrides: Values that win over environment and file. A section is given as a mapping (only the keys
            named are replaced), or one value by its dotted name: ``**{"inversion.steps": 150}``.

    Raises:
        SettingsError: A key is unknown or a value impossible; one line for each, naming the key, where it was
            set and what is accepted.
    """
    given = _nested(overrides)
    file = settings_file()
    try:
        _refuse_unknown_variables()
        return Settings(**given)
    except ValidationError as error:
        lines = [_explain(e["type"], e["loc"], e["msg"], e["input"], given, file) for e in error.errors()]
        raise SettingsError("\n".join(lines)) from None
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{file} is not valid TOML: {error}. Correct that line.") from None
    except (UnicodeDecodeError, OSError) as error:
        raise SettingsError(f"{file} cannot be read: {error}. Save it as UTF-8 text.") from None
    except pydantic_settings.SettingsError as error:
        raise SettingsError(f"{error}. Sections are set as D3M_SECTION__KEY=value or as JSON.") from None


def _nested(overrides: Mapping[str, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for name, value in overrides.items():
        section, _, key = name.partition(".")
        if key:
            nested[section] = {**nested.get(section, {}), key: value}
        elif isinstance(value, BaseModel):
            # Only what the caller set: the rest of the section still comes from environment and file.
            nested[name] = {**nested.get(name, {}), **value.model_dump(exclude_unset=True)}
        elif isinstance(value, Mapping):
            nested[name] = {**nested.get(name, {}), **value}
        else:
            nested[name] = value
    return nested


def setting_names() -> Iterator[str]:
    """Dotted names of all settings, such as ``seed`` and ``inversion.steps``."""
    for name, field in Settings.model_fields.items():
        section = field.annotation
        if isinstance(section, type) and issubclass(section, BaseModel):
            yield from (f"{name}.{key}" for key in section.model_fields)
        else:
            yield name


def _refuse_unknown_variables() -> None:
    # pydantic-settings passes over variables that match no field: a misspelt one would silently do nothing.
    for variable in sorted(os.environ):
        name = variable.upper()
        if name.startswith(ENVIRONMENT_PREFIX) and name != FILE_VARIABLE:
            section = name.removeprefix(ENVIRONMENT_PREFIX).lower().split("__")[0]
            if section not in Settings.model_fields:
                wanted = name.removeprefix(ENVIRONMENT_PREFIX).lower().replace("__", ".")
                raise SettingsError(f"unknown environment variable {variable}{_close(wanted, as_variable=True)}")


def _close(name: str, *, as_variable: bool = False) -> str:
    names = list(setting_names())
    last = name.rpartition(".")[2]
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.7)
    close += [n for n in names if n.rpartition(".")[2] == last and n not in close]
    if as_variable:
        close = [_variable(n) for n in close]
    if close:
        return f"; did you mean {' or '.join(close)}?"
    sections = ", ".join(sorted(Settings.model_fields))
    return f"; remove it. Known at the top level: {sections}."


def _variable(name: str) -> str:
    return ENVIRONMENT_PREFIX + name.upper().replace(".", "__")


def _explain(
    kind: str,
    loc: tuple[int | str, ...],
    message: str,
    value: Any,
    given: Mapping[str, Any],
    file: Path | None,
) -> str:
    if not loc:  # of several settings together
        return message.removeprefix("Value error, ")
    # Positions inside a list and the arms of a union are not part of a setting's name.
    parts = [str(p) for p in loc]
    known = set(setting_names())
    name = ".".join(parts[:2]) if kind == "extra_forbidden" or ".".join(parts[:2]) in known else parts[0]
    origin = _origin(name, given, file)
    if kind == "extra_forbidden":
        return f"unknown setting {name}{origin}{_close(name)}"
    shown = repr(value) if len(repr(value)) <= 80 else repr(value)[:77] + "..."
    if name in SECRETS:
        shown = "not shown"
    return f"setting {name}{origin}: {message.removeprefix('Value error, ')} (got {shown})"


def _origin(name: str, given: Mapping[str, Any], file: Path | None) -> str:
    section, _, key = name.partition(".")
    inner = given.get(section)
    if section in given and (not key or not isinstance(inner, Mapping) or key in inner):
        return ""
    present = {variable.upper() for variable in os.environ}
    for variable in (_variable(name), _variable(section)):
        if variable in present:
            return f" (from ${variable})"
    return f" (in {file})" if file else ""
