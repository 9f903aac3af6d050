"""How the embedded foundation model is trained: `d3m foundation train`.

Three stages, each resumable from the last checkpoint: an autoencoder on drawn characters, the latents of a fixed set of
them, and a text encoder and U-Net trained together on these latents with captions. Gradients of the worker processes
(one thread each: small convolutions gain nothing from a second) are averaged at every step.

Captions prepare the text encoder for what textual inversion will do, one learned vector that says at once which
character and in which style. Some put several words into one vector, the normalised sum of their embeddings. Others hold
the embedding of the image itself, or the mean of it and images like it, computed by a small encoder that learns along
(as the semantic encoder of Diffusion Autoencoders does, Preechakul et al. 2022, arXiv 2111.15640) and is kept, since
inversion can start from what it sees: a vector there describes one drawing, or what a set of drawings has in common.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from d3m_assets.compute.workers import end_with_parent
from d3m_assets.foundation.embedded.captions import CaptionBatch, ImageSets
from d3m_assets.foundation.embedded.characters import CHARACTERS, Rendered, render
from d3m_assets.foundation.embedded.models import (
    NOISE,
    TEXT_WIDTH,
    build_autoencoder,
    build_text_encoder,
    build_tokenizer,
    build_unet,
    pixels_to_model,
)
from d3m_assets.foundation.embedded.outlines import build_outlines, load_outlines
from d3m_assets.foundation.files import IMAGE_ENCODER
from d3m_assets.foundation.image_encoder import build_image_encoder
from d3m_assets.foundation.tokens import TokenTable
from d3m_assets.progress import Progress, ProgressEvent, silent

if TYPE_CHECKING:
    import torch
    from diffusers import AutoencoderKL

_IMAGE_NOISE = 0.35
"""Length of the noise on an image embedding of length 1, so that neighbouring vectors draw neighbouring drawings."""


@dataclass(frozen=True)
class TrainingSettings:
    """Everything that determines the trained weights.

    Attributes:
        seed: Of drawing, initial weights, captions and noise.
        processes: Worker processes; the batch is divided among them.
        vae_steps: Steps of the autoencoder.
        vae_batch: Images a step, over all processes.
        images: Characters whose latents are trained on.
        steps: Steps of text encoder and U-Net.
        batch: Latents a step, over all processes.
        symbol_share: Share of symbols without a name among the images that are no random shapes.
        shape_share: Share of random shapes, which nothing names either; the rest are the 62 characters alike.
        pen_share: Share of the characters that a pen writes (hand-written and single-line skeletons); the rest is printed.
        fonts: Folder of training fonts, a folder for each Debian package in it (``scripts/fonts``); empty: the fonts that
            matplotlib ships, without symbols.
        autoencoder: Pipeline directory whose autoencoder is kept instead of training one; empty: train one.
        image_share: Share of the captions (of those that are not empty) that hold an image embedding.
        learning_rate: Peak rate of both stages; warm-up, then cosine to zero.
        ema: Decay of the moving average of the weights that is kept.
        compile: Compile the U-Net with ``torch.compile``, which needs a C++ compiler: faster steps, and weights that
            differ by rounding.
        start: Pipeline directory of this architecture whose weights training begins from, those of the autoencoder and,
            where it has them, of the image encoder included; empty: from nothing.
    """

    seed: int = 0
    processes: int = 2
    vae_steps: int = 4_000
    vae_batch: int = 32
    images: int = 160_000
    steps: int = 14_000
    batch: int = 128
    symbol_share: float = 0.12
    shape_share: float = 0.12
    pen_share: float = 0.3
    fonts: str = ""
    autoencoder: str = ""
    image_share: float = 0.5
    learning_rate: float = 2e-3
    ema: float = 0.999
    compile: bool = False
    start: str = ""


def _rate(step: int, steps: int, peak: float) -> float:
    warm = min(1.0, (step + 1) / max(1, min(300, steps // 10)))
    return peak * warm * 0.5 * (1 + math.cos(math.pi * step / steps))


class Muon:
    """Muon (Jordan et al. 2024): momentum whose matrices are made orthogonal by a Newton-Schulz iteration.

    An update is scaled to the size that AdamW's has (Liu et al. 2025, arXiv 2502.16982), so that both share a learning
    rate. Convolutions count as matrices of their output channels. Matrices of equal shape go through the iteration as one
    batch: many small products would cost more than the step.

    Args:
        parameters: Weights of two dimensions or more.
        momentum: Decay of the momentum, which is Nesterov's.
        weight_decay: Decoupled, as AdamW's.
    """

    def __init__(
        self, parameters: list[torch.nn.Parameter], momentum: float = 0.95, weight_decay: float = 1e-3
    ) -> None:
        import torch

        self.momentum, self.weight_decay = momentum, weight_decay
        self.state = {p: torch.zeros_like(p) for p in parameters}
        self.groups: dict[tuple[int, int], list[torch.nn.Parameter]] = {}
        for p in parameters:
            self.groups.setdefault((p.shape[0], p[0].numel()), []).append(p)

    def step(self, learning_rate: float) -> None:
        """Update every parameter from its gradient."""
        import torch

        with torch.no_grad():
            for (rows, columns), parameters in self.groups.items():
                gradients = [p.grad for p in parameters if p.grad is not None]
                buffers = [self.state[p] for p in parameters]
                torch._foreach_lerp_(buffers, gradients, 1 - self.momentum)
                ahead = torch._foreach_lerp(gradients, buffers, self.momentum)
                matrices = torch.stack([a.reshape(rows, columns) for a in ahead])
                update = _orthogonal(matrices) * (0.2 * math.sqrt(max(rows, columns)) * learning_rate)
                for parameter, change in zip(parameters, update, strict=True):
                    parameter.mul_(1 - learning_rate * self.weight_decay).sub_(change.view_as(parameter))


def _orthogonal(matrices: torch.Tensor) -> torch.Tensor:
    """Nearest matrices ``[N, R, C]`` with singular values of about 1: five steps of a quintic Newton-Schulz iteration."""
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        square = x @ x.mT
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return x.mT if tall else x


def _is_matrix(name: str, parameter: torch.nn.Parameter) -> bool:
    """Whether Muon updates it: weights of hidden layers, neither embeddings nor what reads and writes the latents."""
    outer = ("embedding", "position", "conv_in", "conv_out", "table", "quant_conv")
    return parameter.ndim > 1 and not any(part in name for part in outer)


class _Trainer:
    """One model's parameters, Muon and AdamW, moving average and checkpoint, in step with the other processes."""

    def __init__(self, modules: dict[str, torch.nn.Module], settings: TrainingSettings, steps: int, file: Path) -> None:
        import torch

        self.parameters = {f"{m}.{n}": p for m, mod in modules.items() for n, p in mod.named_parameters()}
        self.matrices = {n: p for n, p in self.parameters.items() if _is_matrix(n, p)}
        self.others = {n: p for n, p in self.parameters.items() if n not in self.matrices}
        self.muon = Muon(list(self.matrices.values()))
        self.optimizer = torch.optim.AdamW(self.others.values(), betas=(0.9, 0.99), weight_decay=1e-3, fused=True)
        self.average = {n: p.detach().clone() for n, p in self.parameters.items()}
        self.settings, self.steps, self.file, self.step = settings, steps, file, 0
        self.seconds = 0.0
        self.losses: list[float] = []
        self._load()

    def _load(self) -> None:
        import torch
        from safetensors import safe_open

        if not self.file.exists():
            return
        with safe_open(self.file, "pt") as stored:
            meta = stored.metadata()
            self.step, self.seconds = int(meta["step"]), float(meta["seconds"])
            self.losses = json.loads(meta["losses"])
            with torch.no_grad():
                for name, parameter in self.parameters.items():
                    parameter.copy_(stored.get_tensor(f"weight.{name}"))
                    self.average[name].copy_(stored.get_tensor(f"average.{name}"))
                    if self.step and name in self.matrices:
                        self.muon.state[parameter].copy_(stored.get_tensor(f"momentum.{name}"))
                    elif self.step:
                        self.optimizer.state[parameter] = {
                            "step": torch.tensor(float(self.step)),
                            "exp_avg": stored.get_tensor(f"first.{name}"),
                            "exp_avg_sq": stored.get_tensor(f"second.{name}"),
                        }

    def save(self) -> None:
        from safetensors.torch import save

        tensors = {f"weight.{n}": p.detach() for n, p in self.parameters.items()}
        tensors |= {f"average.{n}": a for n, a in self.average.items()}
        tensors |= {f"momentum.{n}": self.muon.state[p] for n, p in self.matrices.items()}
        for name, parameter in self.others.items():
            state = self.optimizer.state[parameter]
            tensors |= {f"first.{name}": state["exp_avg"], f"second.{name}": state["exp_avg_sq"]}
        meta = {"step": str(self.step), "seconds": str(self.seconds), "losses": json.dumps(self.losses)}
        part = self.file.with_suffix(".part")
        # Not save_file, which does not say of a full disk that it is one.
        part.write_bytes(save(tensors, metadata=meta))
        part.replace(self.file)

    def update(self, loss: torch.Tensor) -> None:
        import torch
        import torch.distributed as dist

        parameters = list(self.parameters.values())
        for parameter in parameters:  # Muon's too, which the optimizer does not know
            parameter.grad = None
        loss.backward()
        flat = torch.cat([(p.grad if p.grad is not None else torch.zeros_like(p)).flatten() for p in parameters])
        if dist.is_initialized():
            dist.all_reduce(flat)
            flat /= dist.get_world_size()
        flat *= (1.0 / flat.norm().clamp(min=1.0)).item()
        for parameter, gradient in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
            parameter.grad = gradient.view_as(parameter)
        rate = _rate(self.step, self.steps, self.settings.learning_rate)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.muon.step(rate)
        self.step += 1
        # The average starts short, or it would remember the random initial weights.
        decay = min(self.settings.ema, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(list(self.average.values()), [p.detach() for p in parameters], 1 - decay)

    def apply_average(self) -> None:
        import torch

        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(self.average[name])


def _loop(trainer: _Trainer, stage: str, rank: int, compute_loss: Any, progress: Progress) -> None:
    saved = begun = time.monotonic()
    before = trainer.seconds
    recent: list[float] = []
    while trainer.step < trainer.steps:
        loss = compute_loss(trainer.step)
        trainer.update(loss)
        recent.append(float(loss.detach()))
        if rank:
            continue
        if trainer.step % 50 == 0:
            trainer.losses.append(round(sum(recent) / len(recent), 5))
            recent.clear()
            progress(ProgressEvent(stage, trainer.step, trainer.steps, f"loss {trainer.losses[-1]:.4f}"))
        trainer.seconds = before + time.monotonic() - begun
        if time.monotonic() - saved > 60:
            trainer.save()
            saved = time.monotonic()
    if not rank:
        trainer.save()


def _generator(*key: int) -> torch.Generator:
    import torch

    state = np.random.SeedSequence(key).generate_state(2, np.uint32)
    return torch.Generator().manual_seed(int(state[0]) << 32 | int(state[1]))


def _train_autoencoder(rank: int, settings: TrainingSettings, folder: Path, progress: Progress) -> None:
    import torch

    torch.manual_seed(settings.seed)
    vae = build_autoencoder()
    trainer = _Trainer({"vae": vae}, settings, settings.vae_steps, folder / "autoencoder.safetensors")
    share = settings.vae_batch // settings.processes

    def loss(step: int) -> torch.Tensor:
        seed = int(np.random.SeedSequence([settings.seed, 1, step, rank]).generate_state(1)[0])
        pixels = pixels_to_model(_draw(settings, folder, share, seed).images)
        posterior = vae.encode(pixels).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=_generator(settings.seed, 2, step, rank))
        decoded = vae.decode(posterior.mean + posterior.std * noise).sample
        kl = 0.5 * (posterior.mean.square() + posterior.var - 1 - posterior.logvar).mean()
        return (decoded - pixels).square().mean() + 1e-4 * kl

    _loop(trainer, "autoencoder", rank, loss, progress)


def load_trained_autoencoder(settings: TrainingSettings, folder: Path) -> AutoencoderKL:
    """The trained autoencoder, its latents brought to zero mean and unit variance by exact algebra on the 1x1 layers."""
    import torch
    from safetensors.torch import load_file

    if kept := settings.start or settings.autoencoder:
        vae = build_autoencoder()
        vae.load_state_dict(load_file(Path(kept) / "vae" / "diffusion_pytorch_model.safetensors"))
        return vae.eval().requires_grad_(False)
    vae = build_autoencoder()
    trainer = _Trainer({"vae": vae}, settings, settings.vae_steps, folder / "autoencoder.safetensors")
    trainer.apply_average()
    vae.eval().requires_grad_(False)
    latents = vae.encode(
        pixels_to_model(_draw(settings, folder, 1024, settings.seed + 7_000_000).images)
    ).latent_dist.mean
    mean, std = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    quant, post = vae.quant_conv, vae.post_quant_conv
    assert quant is not None
    assert post is not None
    with torch.no_grad():
        quant.weight[:4] /= std.view(4, 1, 1, 1)
        quant.bias[:4] = (quant.bias[:4] - mean) / std
        quant.bias[4:] -= 2 * std.log()
        post.bias += post.weight[:, :, 0, 0] @ mean
        post.weight *= std.view(1, 4, 1, 1)
    return vae


_SHARD = 5_000


def _draw(settings: TrainingSettings, folder: Path, count: int, seed: int) -> Rendered:
    """What is trained on: all 62 characters alike, random shapes, and symbols where fonts are given."""
    even = sum(c.isdigit() for c in CHARACTERS) / len(CHARACTERS)
    if not settings.fonts:
        return render(count, seed, digit_share=even, pen_share=settings.pen_share, shape_share=settings.shape_share)
    return render(
        count,
        seed,
        digit_share=even,
        pen_share=settings.pen_share,
        outlines=load_outlines(folder / "outlines"),
        symbol_share=settings.symbol_share,
        shape_share=settings.shape_share,
    )


def _encode_shard(settings: TrainingSettings, folder: Path, shard: int, count: int) -> None:
    import torch

    file = folder / f"latents-{shard:03d}.npy"
    if file.exists():
        return
    torch.set_num_threads(1)
    vae = load_trained_autoencoder(settings, folder)
    parts = [
        _draw(settings, folder, min(1000, count - i), settings.seed + 1_000_000 + shard * 1000 + i // 1000)
        for i in range(0, count, 1000)
    ]
    rendered = Rendered(
        np.concatenate([r.images for r in parts]),
        np.concatenate([r.characters for r in parts]),
        np.concatenate([r.attributes for r in parts]),
        [v for r in parts for v in r.variants],
    )
    with torch.inference_mode():
        latents = [
            vae.encode(pixels_to_model(rendered.images[i : i + 100])).latent_dist.mean.half()
            for i in range(0, count, 100)
        ]
    part = file.with_suffix(".part")
    with part.open("wb") as out:
        np.save(out, torch.cat(latents).numpy(), allow_pickle=False)
    np.savez(
        folder / f"captions-{shard:03d}.npz",
        characters=rendered.characters,
        attributes=rendered.attributes,
        variants=np.array(rendered.variants),
    )
    part.replace(file)


def _load_shards(folder: Path) -> tuple[np.ndarray, Rendered]:
    latents = np.concatenate([np.load(f, allow_pickle=False) for f in sorted(folder.glob("latents-*.npy"))])
    stored = [np.load(f, allow_pickle=False) for f in sorted(folder.glob("captions-*.npz"))]
    joined = {k: np.concatenate([s[k] for s in stored]) for k in ("characters", "attributes", "variants")}
    return latents, Rendered(np.zeros(0), joined["characters"], joined["attributes"], list(joined["variants"]))


def _build(settings: TrainingSettings) -> tuple[Any, Any, torch.nn.Module, TokenTable]:
    """Text encoder, U-Net, image encoder and token table, untrained or with the weights of ``settings.start``."""
    import torch
    from safetensors.torch import load_file

    from d3m_assets.errors import SettingsError

    tokenizer = build_tokenizer()
    text, unet = build_text_encoder(tokenizer), build_unet()
    if settings.start:
        start = Path(settings.start)
        missing, unexpected = unet.load_state_dict(
            load_file(start / "unet" / "diffusion_pytorch_model.safetensors"), strict=False
        )
        found = load_file(start / "text_encoder" / "model.safetensors")
        short = {n.removeprefix("text_model."): v for n, v in found.items()}
        text_names = {n: n.removeprefix("text_model.") for n in text.state_dict()}
        wrong = [n for n in missing if not n.startswith("add_embedding.")] + unexpected
        wrong += [n for n, s in text_names.items() if s not in short and "position_ids" not in n]
        if wrong:
            raise SettingsError(
                f"{start} is of another architecture than the embedded model (first difference: {wrong[0]})"
            )
        text.load_state_dict({n: short[s] for n, s in text_names.items() if s in short}, strict=False)
        if missing:
            # What the older model lacks begins as nothing, or its first steps would unlearn the rest.
            with torch.no_grad():
                unet.add_embedding.norm2.weight.zero_()
    encoder = build_image_encoder(TEXT_WIDTH)
    if settings.start and (stored := Path(settings.start) / IMAGE_ENCODER).is_file():
        encoder.load_state_dict(load_file(stored))
    table = TokenTable(text.get_input_embeddings().weight, norm=1.0, trainable=True)
    text.set_input_embeddings(table)
    return text, unet, encoder, table


def _train_diffusion(rank: int, settings: TrainingSettings, folder: Path, progress: Progress) -> None:
    import torch
    import torch.nn.functional as F
    from diffusers import DDPMScheduler

    torch.manual_seed(settings.seed)
    text, unet, encoder, table = _build(settings)
    modules = {"text": text, "unet": unet, "encoder": encoder}
    trainer = _Trainer(modules, settings, settings.steps, folder / "diffusion.safetensors")
    latents, rendered = _load_shards(folder)
    captions, sets = CaptionBatch(build_tokenizer(), settings.image_share), ImageSets(rendered)
    schedule = DDPMScheduler(**NOISE)
    share = settings.batch // settings.processes
    denoise = torch.compile(unet) if settings.compile else unet

    def loss(step: int) -> torch.Tensor:
        rng = np.random.default_rng(np.random.SeedSequence([settings.seed, 3, step, rank]))
        generator = _generator(settings.seed, 4, step, rank)
        chosen = rng.integers(0, len(latents), share)
        clean = torch.from_numpy(latents[chosen]).float()
        drawn = captions(rendered, chosen, rng)
        # Always one image, so that every parameter has a gradient in every process.
        members = [sets(chosen[max(i, 0)], rng) if i >= 0 else chosen[:0] for i in drawn.image_of]
        members.append(chosen[:1])
        flat = torch.from_numpy(latents[np.concatenate(members)]).float()
        each = F.normalize(encoder(flat), dim=-1)
        offsets = torch.tensor([0, *(len(m) for m in members[:-1])]).cumsum(0)
        mean = F.embedding_bag(torch.arange(len(each)), each, offsets, mode="mean")[:-1]
        noise = torch.randn(mean.shape, generator=generator) * (_IMAGE_NOISE / math.sqrt(TEXT_WIDTH))
        table.merge(drawn.words, F.normalize(mean, dim=-1) + noise, torch.tensor(drawn.weights))
        noise = torch.randn(clean.shape, generator=generator)
        # In equal strata, so that the loss of a batch depends less on which were drawn; and more of the noisy ones, where
        # it is decided which character is drawn.
        uniform = (torch.arange(share) + torch.rand(share, generator=generator)) / share
        times = (1000 * uniform**0.7).long().clamp(max=999)[torch.randperm(share, generator=generator)]
        states = text(drawn.ids).last_hidden_state
        predicted = denoise(schedule.add_noise(clean, noise, times), times, states, return_dict=False)[0]
        return (predicted - schedule.get_velocity(clean, noise, times)).square().mean()

    _loop(trainer, "text encoder and U-Net", rank, loss, progress)


def _worker(rank: int, target: Any, settings: TrainingSettings, folder: Path, port: int, queue: Any) -> None:
    import torch
    import torch.distributed as dist

    end_with_parent()
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=settings.processes)
    try:
        target(rank, settings, folder, queue.put if rank == 0 else silent)
    finally:
        dist.destroy_process_group()


def _parallel(target: Any, settings: TrainingSettings, folder: Path, progress: Progress) -> None:
    import socket

    import torch.multiprocessing as mp

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    queue = mp.get_context("spawn").SimpleQueue()
    context = mp.spawn(_worker, (target, settings, folder, port, queue), nprocs=settings.processes, join=False)
    finished = False
    while not finished:
        finished = context.join(timeout=1)
        while not queue.empty():
            progress(queue.get())


def export(settings: TrainingSettings, folder: Path, output: Path) -> None:
    """Write what was trained as a stock diffusers pipeline directory, fp16 safetensors.

    Args:
        settings: Those of the training.
        folder: Where the checkpoints lie.
        output: The directory to write; replaced whole.
    """
    import torch
    from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline
    from safetensors.torch import save_file

    tokenizer = build_tokenizer()
    text, unet, encoder, table = _build(settings)
    modules = {"text": text, "unet": unet, "encoder": encoder}
    trainer = _Trainer(modules, settings, settings.steps, folder / "diffusion.safetensors")
    trainer.apply_average()
    plain = torch.nn.Embedding(*table.weight.shape)
    with torch.no_grad():
        plain.weight.copy_(table.weight)
    text.set_input_embeddings(plain)
    scheduler = DPMSolverMultistepScheduler(**NOISE, timestep_spacing="trailing", lambda_min_clipped=-5.1)
    pipeline = StableDiffusionPipeline(
        vae=load_trained_autoencoder(settings, folder),
        text_encoder=text,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).to(torch.float16)
    part = output.with_name(output.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    pipeline.save_pretrained(part)
    save_file({n: w.half().contiguous() for n, w in encoder.state_dict().items()}, part / IMAGE_ENCODER)
    # transformers 5 would otherwise load the text encoder as fp16 beside an fp32 U-Net, and the pipeline would fail.
    config = part / "text_encoder" / "config.json"
    config.write_text(config.read_text().replace('"dtype": "float16"', '"dtype": "float32"'))
    # Of paths the last part: where they were on this machine is nobody's business.
    named = {
        name: Path(value).name for name, value in asdict(settings).items() if name in ("fonts", "autoencoder", "start")
    }
    facts = {"settings": asdict(settings) | named, "seconds": round(trainer.seconds), "losses": trainer.losses}
    if settings.fonts:
        facts["fonts"] = load_outlines(folder / "outlines").sources
    if settings.start and (before := Path(settings.start) / "training.json").is_file():
        facts["begun_from"] = json.loads(before.read_text())
    (part / "training.json").write_text(json.dumps(facts, indent=1) + "\n")
    if output.exists():
        for kept in output.iterdir():
            if not (part / kept.name).exists():
                shutil.move(kept, part / kept.name)
        shutil.rmtree(output)
    part.replace(output)


def train(settings: TrainingSettings, folder: Path, output: Path, progress: Progress = silent) -> None:
    """Train the embedded foundation model and write it to ``output``.

    A run that was stopped goes on from its last checkpoint (written every minute). Checkpoints of other settings are
    refused.

    Args:
        settings: What to train.
        folder: For checkpoints and latents, about 110 MB for 160,000 images.
        output: The pipeline directory.
        progress: Called about every 50 steps.

    Raises:
        SettingsError: ``folder`` holds a training with other settings, or a batch cannot be divided among the processes.
    """
    import torch.multiprocessing as mp

    from d3m_assets.errors import SettingsError

    for name in ("batch", "vae_batch"):
        if getattr(settings, name) % settings.processes:
            raise SettingsError(
                f"{name}={getattr(settings, name)} cannot be divided among {settings.processes} processes; change --processes"
            )
    folder.mkdir(parents=True, exist_ok=True)
    record = folder / "settings.json"
    wanted = json.dumps(asdict(settings), indent=1)
    if record.exists() and record.read_text() != wanted:
        raise SettingsError(
            f"{folder} holds a training begun with other settings: {record.read_text()}. "
            "Repeat these, or name another folder with --work."
        )
    record.write_text(wanted)
    if settings.fonts:
        build_outlines(Path(settings.fonts), folder / "outlines", processes=settings.processes)
    if not (settings.start or settings.autoencoder):
        _parallel(_train_autoencoder, settings, folder, progress)
    shards = [(i, min(_SHARD, settings.images - i * _SHARD)) for i in range(math.ceil(settings.images / _SHARD))]
    with mp.get_context("spawn").Pool(settings.processes) as pool:
        pending = [pool.apply_async(_encode_shard, (settings, folder, i, n)) for i, n in shards]
        for done, result in enumerate(pending, start=1):
            result.get()
            progress(ProgressEvent("latents", done, len(shards)))
    _parallel(_train_diffusion, settings, folder, progress)
    export(settings, folder, output)
