"""Settings sections ``prompts``, ``inversion``, ``generation`` and ``selection``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator
from pydantic_settings import NoDecode

from d3m_assets.distillation.selection import MOST_CANDIDATES
from d3m_assets.setting_types import Interval, Positive, Section, as_list_of_texts, distinct

Payload = Literal["prompts", "codes", "both", "auto"]
"""What a class stores within its budget; auto: prompts or codes, whichever teaches more."""
PROMPTS: Literal["prompts"] = "prompts"
CODES: Literal["codes"] = "codes"
BOTH: Literal["both"] = "both"
AUTO: Literal["auto"] = "auto"
PARTS: Mapping[Payload, frozenset[str]] = {
    PROMPTS: frozenset({PROMPTS}),
    CODES: frozenset({CODES}),
    BOTH: frozenset({PROMPTS, CODES}),
    AUTO: frozenset({PROMPTS, CODES}),
}
"""What is made for a payload: prompts, from which images are generated, and codes, which are decoded; of auto, to choose from."""


def _template(value: str) -> str:
    if value.count("{}") != 1 or set("{}") & set(value.replace("{}", "")):
        raise ValueError(f'"{value}" needs the place of the class, {{}}, exactly once and no other brace')
    return value


LONGEST_TEMPLATE = 500
"""Characters; a text encoder reads about 77 tokens."""
MOST_TEMPLATES = 1000
MOST_STEPS = 1000
"""Denoising steps: those that noise schedules have."""
MOST_IMAGES = 1_000_000
"""Of a class, or of a batch."""
Template = Annotated[str, Field(max_length=LONGEST_TEMPLATE), AfterValidator(_template)]
Templates = Annotated[
    tuple[Template, ...],
    NoDecode,
    BeforeValidator(as_list_of_texts),
    Field(min_length=1, max_length=MOST_TEMPLATES),
    AfterValidator(distinct),
]


class PromptSettings(Section):
    """How a class is put into words."""

    templates: Templates = Field(
        default=("a photo of a {}",),
        description="Prompts with {} for the class. In the environment: one template, or a JSON list.",
    )
    initializer: str | None = Field(
        default=None,
        min_length=1,
        description="Words whose embeddings the inversion starts from, dealt out in turn to the vectors of a prompt; none: "
        "the class name for all of them, or images (inversion.initialization).",
    )
    keep_class_name: bool = Field(
        default=True,
        description="Whether the class name stays in the prompt, behind the learned vectors.",
    )


class InversionSettings(Section):
    """How the embeddings of a class are fitted to its images."""

    steps: Positive = Field(
        default=150,
        description="Optimizer steps. Unless given 50 for the embedded model where directions start from images.",
    )
    samples_per_step: Positive = Field(
        default=16, description="Noised training images of each class in one step, at least 2 for each prompt."
    )
    directional: bool = Field(
        default=True,
        description="Whether only directions are learned and stored, at the norm of the token table; no: AdamW on whole "
        "vectors, whose norms are stored with them.",
    )
    learning_rate: float = Field(
        default=0.15,
        gt=0,
        description="Highest rate of the cosine schedule: the angle, in radians, that one step turns a vector by. Without "
        "directional: the change of each number in one step, unless given 2e-3.",
    )
    initialization: Literal["auto", "words", "images"] = Field(
        default="auto",
        description="What vectors start from: words, the class's name or prompts.initializer; or the images of their cluster, seen "
        "by the model's image encoder, which the embedded model has; auto: images where that is so and no initializer is given.",
    )
    vectors_per_prompt: Positive | None = Field(
        default=None, description="Embedding vectors of one prompt; none: chosen by the budget planner."
    )
    storage_type: Literal["auto", "int4", "int8", "fp16"] = Field(
        default="auto", description="Number format of stored vectors; auto: chosen by the budget planner."
    )
    classes_per_batch: Positive | None = Field(
        default=None,
        description="Most classes inverted together; none: on a CPU a few, on a GPU as many as fit into its memory.",
    )
    check_every: Positive = Field(default=10, description="Steps between two evaluations of the loss on fixed inputs.")
    patience: Positive | None = Field(
        default=None,
        description="Evaluations without progress after which a class is finished early; none: all its steps.",
    )
    flip: bool = Field(default=False, description="Also learn from mirrored images; wrong for digits and letters.")
    timestep_power: float = Field(
        default=1.0,
        gt=0,
        description="Timesteps are sampled as T u^power, u uniform: below 1 the noisy ones more often.",
    )
    snr_gamma: float | None = Field(default=None, gt=0, description="Cap of min-SNR loss weights; none: no weights.")
    max_prompts: Annotated[int, Field(ge=1, le=676)] = Field(
        default=32, description="Most prompts of a class; beyond it a budget buys more vectors in each."
    )

    @model_validator(mode="after")
    def _rate_of_its_kind(self) -> InversionSettings:
        """An angle is no step of a number: without a rate that was given, each way of learning has its own."""
        if not self.directional and "learning_rate" not in self.model_fields_set:
            self.__dict__["learning_rate"] = 2e-3
        return self

    def fingerprint(self) -> dict[str, Any]:
        """What decides about vectors, as JSON values; how many classes share a batch does not.

        What they start from is left out, since it depends on the model and the class as well.
        """
        left_out = {"classes_per_batch", "initialization"} | ({"directional"} if self.directional else set())
        return self.model_dump(mode="json", exclude=left_out)


class GenerationSettings(Section):
    """How the synthetic pool is generated from the embeddings."""

    images_per_class: Annotated[int, Field(ge=1, le=MOST_IMAGES)] = Field(
        default=50, description="Images of each class and budget that the training set has."
    )
    steps: Annotated[int, Field(ge=1, le=MOST_STEPS)] = Field(default=10, description="Denoising steps of one image.")
    guidance_scale: float = Field(
        default=2.0,
        ge=0,
        le=1000,
        description="Classifier-free guidance; 1 switches it off, which halves the cost. Unless given 1 for the embedded model.",
    )
    batch_size: Annotated[int, Field(ge=1, le=MOST_IMAGES)] = Field(
        default=50, description="Images denoised together; part of an image's address, since it decides how sums round."
    )
    scheduler: Literal["dpmsolver++", "unipc", "ddim", "lcm"] = Field(
        default="dpmsolver++", description="Sampler of the diffusion model; lcm only for models distilled for it."
    )
    guidance_interval: Interval = Field(
        default=(0.0, 1.0),
        description="Part of the noise schedule in which guidance is on, 0 clean and 1 pure noise; outside it, each step "
        "costs half.",
    )
    decode_batch_size: Annotated[int, Field(ge=1, le=MOST_IMAGES)] | None = Field(
        default=None, description="Images the autoencoder decodes together; none: all of a batch on a CPU, 8 on a GPU."
    )
    tiny_autoencoder: Path | None = Field(
        default=None,
        description="Folder of a diffusers AutoencoderTiny (TAESD) that decodes in place of the model's own autoencoder.",
    )

    def fingerprint(self) -> dict[str, Any]:
        """What decides about images, as JSON values; the tiny autoencoder is known by its content, not by its place."""
        return self.model_dump(mode="json", exclude={"tiny_autoencoder"})


def _planned(value: Any) -> Any:
    if isinstance(value, str) and value.strip().casefold() == "auto":
        return None
    return value


def _or_none(value: Any) -> Any:
    # The word "none" in the environment stands for None everywhere else.
    return "none" if value is None else value


Planned = Annotated[Annotated[int, Field(ge=1, le=MOST_CANDIDATES)] | None, BeforeValidator(_planned)]
"""A number of samples, or "auto" (None): the budget planner chooses it."""


class SelectionSettings(Section):
    """Which of the samples that are generated of a class its training set keeps."""

    criterion: Annotated[Literal["centres", "herding", "recognised", "none"], BeforeValidator(_or_none)] = Field(
        default="centres",
        description="centres (for each k-means centre of the class's real features the nearest sample), herding (a mean near "
        "the real one), recognised (the first that a network of the train split takes for their class); none: all are kept.",
    )
    candidates: Planned = Field(
        default=None,
        description="Samples to choose from; auto: three for each that is kept, or what the budget's bytes can address.",
    )
    kept: Planned = Field(default=None, description="Samples that are kept; auto: generation.images_per_class.")
    features: Path | None = Field(
        default=None,
        description="Folder of a frozen transformers vision model (config.json, *.safetensors), such as DINO or CLIP, by whose "
        "features samples are selected and with a linear classifier recognised; none: a ConvNet-3 is trained.",
    )

    @model_validator(mode="after")
    def _something_to_choose(self) -> SelectionSettings:
        if self.criterion == "none" and (self.candidates or self.kept or self.features):
            raise ValueError(
                "with criterion none all samples are kept, so candidates, kept and features say nothing; leave them out, "
                "name a criterion, or set generation.images_per_class"
            )
        if self.candidates and self.kept and self.candidates < self.kept:
            raise ValueError(
                f"candidates={self.candidates} are fewer than kept={self.kept}; raise one or lower the other"
            )
        return self
