"""Ways of learning the vectors of a dataset's classes that the product does not have; ``benchmarks.levers`` compares them.

Each works on the public parts of ``d3m_assets.distillation``: an objective that adds a term to the denoising error, a start of
the vectors, an optimizer that keeps them in a subspace.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch.nn import functional as F

from d3m_assets.distillation.budgets import EmbeddingPlan
from d3m_assets.distillation.class_batch import ClassBatch
from d3m_assets.distillation.generation import make_scheduler
from d3m_assets.distillation.inversion import prepare_class
from d3m_assets.distillation.inversion_state import ClassState, InversionTask, InvertedClass
from d3m_assets.distillation.latents import LatentCache
from d3m_assets.distillation.objective import FIXED_SAMPLES, DenoisingObjective, DiffusionBatch
from d3m_assets.distillation.optimizers import Optimizer, SphericalAdam, make_optimizer
from d3m_assets.distillation.packing import Packing
from d3m_assets.distillation.random_streams import random_stream
from d3m_assets.distillation.settings import InversionSettings
from d3m_assets.distillation.text import LearnedRows, extended_tables
from d3m_assets.distillation.vectors import from_stored, to_stored
from d3m_assets.errors import D3MError, StageError
from d3m_assets.evaluation.teacher import Teacher
from d3m_assets.foundation.loading import Foundation, TextStates
from d3m_assets.foundation.vector_layout import VectorLayout
from d3m_assets.progress import silent

Start = Callable[[DenoisingObjective, ClassState, LearnedRows], None]
"""Changes the rows of a class before its first step."""


def learn(
    foundation: Foundation,
    tasks: Sequence[InversionTask],
    objective: DenoisingObjective,
    cache: LatentCache,
    *,
    start: Start | None = None,
    together: bool = False,
) -> list[InvertedClass]:
    """Learn the prompts of classes as ``d3m_assets.distillation.inversion.invert`` does, with parts of one's own.

    Args:
        foundation: The frozen model.
        tasks: The classes.
        objective: What is minimised; it has the settings, the seed and the optimizer.
        cache: Where latents are kept.
        start: Of the rows; None: as the product starts them.
        together: Whether all classes are in one batch, as objectives that compare them need it.

    Raises:
        D3MError: A class could not be learned.
    """
    found: dict[int, InvertedClass | D3MError] = {}
    with extended_tables(foundation) as learned_rows:

        def prepare(position: int, task: InversionTask) -> ClassState:
            settings, seed = objective.settings, objective.seed
            state = prepare_class(foundation, position, task, settings, seed, objective.optimizer, cache=cache)
            if start is not None:
                start(objective, state, learned_rows)
            return state

        packing = Packing(len(tasks) if together else 1)
        batch = ClassBatch(
            tasks, prepare, objective, learned_rows, packing, probe=None, progress=silent, save_every=math.inf
        )
        while batch.unfinished:
            for phase in (batch.fill, batch.evaluate, batch.retire):
                found.update(phase())
            if batch.active:
                found.update(batch.step())
    results = [found[position] for position in range(len(tasks))]
    for result in results:
        if isinstance(result, D3MError):
            raise result
    return results  # type: ignore[return-value]  # the errors are raised


class ObjectiveWithTerm(DenoisingObjective, ABC):
    """The denoising error of a class and another term of its prompts, min-SNR weights left out.

    The term is multiplied by ``weight`` and by the class's own denoising error, without its gradient, so that a weight means
    the same for every model and every timestep law.

    Args:
        foundation: The frozen model.
        settings: Samples and timestep law of a step.
        seed: Root of the random streams.
        optimizer: Turns rows into token embeddings.
        weight: Of the term.
    """

    def __init__(
        self, foundation: Foundation, settings: InversionSettings, seed: int, optimizer: Optimizer, weight: float
    ) -> None:
        super().__init__(foundation, settings, seed, optimizer)
        self.weight = weight

    @abstractmethod
    def errors_and_terms(
        self,
        states: Sequence[ClassState],
        texts: TextStates,
        batches: Sequence[DiffusionBatch],
        samples: Sequence[int],
        stream: object,
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Denoising error and term of every prompt, float ``[prompts]`` for each class.

        Args:
            states: The classes.
            texts: Of their prompts.
            batches: A batch of each class.
            samples: Samples of each prompt in them.
            stream: Name of the random stream of what else is drawn.
        """

    def _losses(
        self,
        states: Sequence[ClassState],
        texts: TextStates,
        batches: Sequence[DiffusionBatch],
        samples: Sequence[int],
        stream: object,
    ) -> list[torch.Tensor]:
        errors, terms = self.errors_and_terms(states, texts, batches, samples, stream)
        return [error + self.weight * error.detach().mean() * term for error, term in zip(errors, terms, strict=True)]

    def fixed_losses(self, states: Sequence[ClassState], learned_rows: LearnedRows) -> list[float]:
        """Loss of each class, with its term, on its fixed batch."""
        samples = [max(1, math.ceil(FIXED_SAMPLES / state.prompt_count)) for state in states]
        batches = [self.sample(state, "fixed", n) for state, n in zip(states, samples, strict=True)]
        learned_rows.set(self.optimizer.embeddings(torch.cat([state.rows for state in states])))
        with torch.inference_mode():
            texts = self.text_states(states, [0] * len(states))
            return [float(loss.mean()) for loss in self._losses(states, texts, batches, samples, "fixed")]

    def gradients(self, states: Sequence[ClassState], learned_rows: LearnedRows) -> list[tuple[float, torch.Tensor]]:
        """Loss of each class at its own step, and the gradient of the sum of all losses in its rows, float ``[R, D]``."""
        rows = torch.cat([state.rows for state in states]).detach().requires_grad_(True)
        learned_rows.set(self.optimizer.embeddings(rows))
        samples = [state.samples_per_prompt(self.settings.samples_per_step) for state in states]
        power = self.settings.timestep_power
        batches = [self.sample(state, state.step, n, power) for state, n in zip(states, samples, strict=True)]
        texts = self.text_states(states, [state.step for state in states])
        losses = self._losses(states, texts, batches, samples, states[0].step)
        (gradient,) = torch.autograd.grad(torch.cat(losses).sum(), rows)
        parts = gradient.split([len(state.rows) for state in states])
        return [(float(loss.detach().mean()), part) for loss, part in zip(losses, parts, strict=True)]


class DiscriminativeObjective(ObjectiveWithTerm):
    """The denoising error, and the cross-entropy of a Diffusion Classifier (Li et al. 2023) over a few prompts.

    A sample is to be denoised better under its own prompt than under prompts of other classes with the same noise and
    timestep. Logits are ``-sharpness`` times the logarithm of the error, which does not depend on how large errors are at
    a timestep. Gradients reach the own prompt and the others, so all classes have to be in the batch.

    Args:
        foundation: The frozen model.
        settings: Samples and timestep law of a step.
        seed: Root of the random streams.
        optimizer: Turns rows into token embeddings.
        weight: Of the cross-entropy.
        negatives: Prompts of other classes, drawn for each sample.
        sharpness: How decided the classifier is.
    """

    def __init__(
        self,
        foundation: Foundation,
        settings: InversionSettings,
        seed: int,
        optimizer: Optimizer,
        weight: float,
        negatives: int = 2,
        sharpness: float = 8.0,
    ) -> None:
        super().__init__(foundation, settings, seed, optimizer, weight)
        self.negatives, self.sharpness = negatives, sharpness

    def errors_and_terms(
        self,
        states: Sequence[ClassState],
        texts: TextStates,
        batches: Sequence[DiffusionBatch],
        samples: Sequence[int],
        stream: object,
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Denoising errors, and the cross-entropy of the own prompt among it and ``negatives`` prompts of other classes."""
        prompts = torch.tensor([state.prompt_count for state in states])
        per_prompt = torch.tensor(samples).repeat_interleave(prompts)
        own = torch.arange(int(prompts.sum())).repeat_interleave(per_prompt)
        own_class = torch.arange(len(states)).repeat_interleave(prompts)[own]
        generator = random_stream(self.seed, "negatives", stream)
        others = [other_prompts(own_class, prompts, generator) for _ in range(self.negatives)]
        errors = torch.stack([self._errors(texts[chosen], batches) for chosen in (own, *others)])
        logits = -self.sharpness * errors.log()
        terms = logits.logsumexp(0) - logits[0]
        sizes = (per_prompt.split(prompts.tolist()), own_class.bincount(minlength=len(states)).tolist())
        means = [
            [part.view(len(counts), -1).mean(1) for counts, part in zip(sizes[0], values.split(sizes[1]), strict=True)]
            for values in (errors[0], terms)
        ]
        return means[0], means[1]

    def _errors(self, text: TextStates, batches: Sequence[DiffusionBatch]) -> torch.Tensor:
        """Mean squared error of every sample under a prompt of its own, float ``[N]``."""
        latents, noise, timesteps = (torch.cat(part).to(self.foundation.device) for part in zip(*batches, strict=True))
        predicted = self.foundation.predict(self.schedule.add_noise(latents, noise, timesteps), timesteps, text)
        target = self.schedule.get_velocity(latents, noise, timesteps) if self.velocity else noise
        return (predicted - target).square().flatten(1).mean(1)


def other_prompts(own_class: torch.Tensor, prompts: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """For each sample a prompt of another class, classes and then their prompts alike likely.

    Args:
        own_class: Of each sample, int64 ``[N]``.
        prompts: Number of prompts of each of at least two classes, int64 ``[K]``.
        generator: On the CPU.

    Returns:
        Positions among all prompts, those of the classes one behind the other, int64 ``[N]``.
    """
    away = torch.randint(1, len(prompts), own_class.shape, generator=generator)
    other = (own_class + away) % len(prompts)
    first = prompts.cumsum(0) - prompts
    return first[other] + (torch.rand(own_class.shape, generator=generator) * prompts[other]).long()


class SamplerObjective(ObjectiveWithTerm):
    """The denoising error, and how a network of the train split takes what the prompts generate.

    Samples are generated by DDIM without guidance; gradients pass through the decoder and the last step, as in DRaFT-1
    (Clark et al., ICLR 2024).

    Args:
        foundation: The frozen model.
        settings: Samples and timestep law of a step.
        seed: Root of the random streams.
        optimizer: Turns rows into token embeddings.
        weight: Of the cross-entropy of the network's answers.
        network: Its classes are those of the tasks, in their order.
        steps: Of the sampler.
        generated: Samples of each class in a step, at least one of each prompt.
    """

    def __init__(
        self,
        foundation: Foundation,
        settings: InversionSettings,
        seed: int,
        optimizer: Optimizer,
        weight: float,
        network: Teacher,
        steps: int = 4,
        generated: int = 8,
    ) -> None:
        super().__init__(foundation, settings, seed, optimizer, weight)
        self.network, self.steps, self.generated = network, steps, generated

    def errors_and_terms(
        self,
        states: Sequence[ClassState],
        texts: TextStates,
        batches: Sequence[DiffusionBatch],
        samples: Sequence[int],
        stream: object,
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Denoising errors, and the cross-entropy of the network's answers to generated samples."""
        errors, terms, first = self.losses(states, texts, batches, samples), [], 0
        for state in states:
            own = texts[list(range(first, first + state.prompt_count))]
            each = math.ceil(self.generated / state.prompt_count)
            generator = random_stream(self.seed, state.task.prompts.class_key, "sampler", stream)
            images = self._generate(own.repeat(torch.full((len(own),), each)), generator)
            answers = self.network.forward(self._as_seen(images))
            labels = torch.full((len(images),), state.position, device=answers.device)
            terms.append(F.cross_entropy(answers, labels, reduction="none").view(len(own), each).mean(1))
            first += state.prompt_count
        return errors, terms

    def _generate(self, text: TextStates, generator: torch.Generator) -> torch.Tensor:
        """Images in 0..1, float ``[N, 3, S, S]``, one of each prompt."""
        foundation = self.foundation
        scheduler = make_scheduler(foundation.scheduler_config, "ddim")
        scheduler.set_timesteps(self.steps, device=foundation.device)
        side = foundation.files.image_size // 2 ** (len(foundation.vae.config.block_out_channels) - 1)
        latents = torch.randn((len(text), foundation.unet.config.in_channels, side, side), generator=generator)
        latents = latents.to(foundation.device) * scheduler.init_noise_sigma
        with_gradient = torch.is_grad_enabled()
        for k, t in enumerate(scheduler.timesteps):
            with torch.set_grad_enabled(with_gradient and k == self.steps - 1):
                predicted = foundation.predict(scheduler.scale_model_input(latents, t), t, text)
                latents = scheduler.step(predicted, t, latents).prev_sample
        scaled = latents.to(foundation.vae.dtype) / foundation.vae.config.scaling_factor
        return (foundation.vae.decode(scaled).sample.float() / 2 + 0.5).clamp(0, 1)

    def _as_seen(self, images: torch.Tensor) -> torch.Tensor:
        """Images at the size and with the channels of the network."""
        if self.network.channels == 1:
            images = images.mean(1, keepdim=True)
        side = self.network.image_size
        return F.interpolate(images, (side, side), mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)


def nearest_of_starts(
    objective: DenoisingObjective, state: ClassState, learned_rows: LearnedRows, draws: int = 8, noise: float = 0.6
) -> None:
    """Start every prompt of a class from the one of several starts that denoises its own cluster best.

    Args:
        objective: Gives the denoising errors, all of the same latents, noise and timesteps.
        state: The class, whose rows are the first start.
        learned_rows: The rows that the text encoders see.
        draws: Starts of each prompt.
        noise: Norm of what the others are away from the first, before they are normalised; rows have norm 1.
    """
    first, layout, vectors = state.rows, state.layout, state.task.plan.vectors
    generator = random_stream(objective.seed, state.task.prompts.class_key, "starts")
    samples = max(4, math.ceil(FIXED_SAMPLES / state.prompt_count))
    batch = objective.sample(state, "starts", samples)
    lowest = torch.full((state.prompt_count,), math.inf, device=first.device)
    best = first
    for draw in range(draws):
        away = layout.unit(torch.randn(first.shape, generator=generator)).to(first)
        rows = first if draw == 0 else layout.unit(first + noise * away)
        learned_rows.set(objective.optimizer.embeddings(rows))
        with torch.no_grad():
            texts = objective.text_states([state], [0])
            (losses,) = objective.losses([state], texts, [batch], [samples])
        lower = losses < lowest
        lowest = torch.where(lower, losses, lowest)
        best = torch.where(lower.repeat_interleave(vectors)[:, None], rows, best)
    state.rows = state.best_rows = best


def words_and_images(objective: DenoisingObjective, state: ClassState, learned_rows: LearnedRows) -> None:
    """Start every vector between the class's words and what the image encoder sees of its cluster.

    Args:
        objective: Has the model and the seed.
        state: The class, whose rows are that of one of both.
        learned_rows: Not needed.
    """
    settings = objective.settings
    both = [
        prepare_class(
            objective.foundation,
            state.position,
            state.task,
            settings.model_copy(update={"initialization": kind}),
            objective.seed,
            objective.optimizer,
        ).rows
        for kind in ("words", "images")
    ]
    state.rows = state.best_rows = state.layout.unit(both[0] + both[1])


class SubspaceAdam(SphericalAdam):
    """Adam on directions within a subspace of the token embeddings.

    Args:
        layout: Of a model with one text encoder.
        basis: Orthonormal rows, float ``[R, D]``.
    """

    def __init__(self, layout: VectorLayout, basis: torch.Tensor) -> None:
        super().__init__(layout)
        self.basis = basis

    def initial_rows(self, directions: torch.Tensor) -> torch.Tensor:
        """The directions' projections onto the subspace, at norm 1."""
        return F.normalize(directions @ self.basis.T @ self.basis, dim=-1)

    def step(
        self, rows: torch.Tensor, gradient: torch.Tensor, state: dict[str, torch.Tensor], step: int, rate: float
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """One step along the subspace."""
        return super().step(rows, gradient @ self.basis.T @ self.basis, state, step, rate)


def shared_basis(vectors: Sequence[np.ndarray], layout: VectorLayout, rank: int) -> np.ndarray:
    """An orthonormal basis of the learned vectors of all classes, as both sides have it: from its int8 form.

    Args:
        vectors: Stored vectors of each class, ``[prompts, vectors, stored_width]``.
        layout: Of the model.
        rank: Vectors of the basis.

    Returns:
        float32 ``[rank, D]``; costs ``rank * D`` bytes once for all classes.

    Raises:
        StageError: The model has several text encoders, or fewer vectors were learned than the basis is to have.
    """
    if len(layout.widths) > 1:
        raise StageError("a shared basis is for models with one text encoder")
    rows = np.concatenate([from_stored(of_class, layout).reshape(-1, layout.width) for of_class in vectors])
    if rank > min(rows.shape):
        raise StageError(f"{len(rows)} vectors of {rows.shape[1]} numbers have no basis of {rank}")
    directions = np.linalg.svd(rows, full_matrices=False)[2][:rank]
    plan = EmbeddingPlan(rank, 1, "int8", layout.width)
    stored = to_stored(directions[:, None], plan, layout.widths)
    rounded = from_stored(stored, VectorLayout(layout.widths, (1.0,)))[:, 0]
    return np.linalg.qr(rounded.T.astype(np.float64))[0].T.astype(np.float32)


def through_basis(rows: np.ndarray, basis: np.ndarray, plan: EmbeddingPlan) -> np.ndarray:
    """Directions after their coefficients in a basis were stored.

    Args:
        rows: float ``[prompts, vectors, D]``.
        basis: Orthonormal rows, float ``[R, D]``.
        plan: Of the coefficients; its width is R.

    Returns:
        float32 ``[prompts, vectors, D]``.
    """
    stored = to_stored(rows @ basis.T, plan, (len(basis),))
    return from_stored(stored, VectorLayout((len(basis),), (1.0,))) @ basis


def learn_in_basis(
    foundation: Foundation,
    tasks: Sequence[InversionTask],
    settings: InversionSettings,
    seed: int,
    cache: LatentCache,
    basis: np.ndarray,
) -> list[InvertedClass]:
    """Learn vectors that are combinations of a basis; each is given as a float16 direction and stored as its coefficients.

    Args:
        foundation: The frozen model.
        tasks: The classes; their plans are of coefficients.
        settings: Of the inversion.
        seed: Root of the random streams.
        cache: Where latents are kept.
        basis: Orthonormal rows, float ``[R, D]``.
    """
    layout = foundation.layout
    optimizer = SubspaceAdam(layout, torch.from_numpy(basis).to(foundation.device))
    whole = [replace(task, plan=replace(task.plan, storage_type="fp16", width=layout.width)) for task in tasks]
    results = learn(foundation, whole, DenoisingObjective(foundation, settings, seed, optimizer), cache)
    given = []
    for task, with_plan, result in zip(tasks, whole, results, strict=True):
        rows = from_stored(result.vectors, VectorLayout(layout.widths, (1.0,)))
        directions = through_basis(rows, basis, task.plan)
        given.append(replace(result, vectors=to_stored(directions, with_plan.plan, layout.widths)))
    return given


def plain(foundation: Foundation, settings: InversionSettings, seed: int) -> DenoisingObjective:
    """The product's own objective."""
    return DenoisingObjective(foundation, settings, seed, make_optimizer(settings, foundation.layout))
