"""The recipe of diffusers' ``examples/textual_inversion/textual_inversion.py``, step by step, to measure against.

Own code after reading that script (diffusers 0.42). What it does in a step is done here, whether it is needed or not:
images are opened, resized and encoded anew, the whole token table is trained and its old rows are put back, and the loss
is fetched. In favour of the script: its start-up (imports, loading, one process a class), checkpoints and validation are
left out, and prompts, start word and mirroring are the engine's, so that both learn the same thing.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from d3m_assets.distillation.latents import ImageFiles
from d3m_assets.distillation.prompts import ClassPrompts, placeholder_token
from d3m_assets.errors import StageError

if TYPE_CHECKING:
    import torch

    from d3m_assets.foundation.loading import Foundation


@dataclass(frozen=True)
class ScriptOptions:
    """Options of the script; the defaults are those of its README, with the batch of four in one piece.

    Attributes:
        batch_size: ``--train_batch_size``.
        learning_rate: ``--learning_rate``; ``--scale_lr`` multiplies it by the batch size.
        steps: ``--max_train_steps``.
        bf16: ``--mixed_precision bf16``: frozen parts in bfloat16, the text encoder under autocast.
        dataloader_workers: ``--dataloader_num_workers``.
    """

    batch_size: int = 4
    learning_rate: float = 5e-4
    steps: int = 3000
    bf16: bool = False
    dataloader_workers: int = 0


class _Images:
    """The script's dataset: every access opens and resizes a file and tokenises a random template."""

    def __init__(self, files: ImageFiles, size: int, templates: list[str], tokenizers: list[Any]) -> None:
        self.files, self.size, self.templates, self.tokenizers = files, size, templates, tokenizers

    def __len__(self) -> int:
        return 100 * len(self.files.images)  # its ``repeats``

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        import torch
        from PIL import Image

        with Image.open(self.files.images[index % len(self.files.images)].uri) as opened:
            image = opened.convert("RGB").resize((self.size, self.size), Image.Resampling.BICUBIC)
        if self.files.flip and float(torch.rand(())) < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        pixels = torch.from_numpy((np.asarray(image, np.uint8) / 127.5 - 1).astype(np.float32))
        text = self.templates[int(torch.randint(len(self.templates), ()))]
        ids = [t(text, padding="max_length", truncation=True, max_length=t.model_max_length,
                 return_tensors="pt").input_ids[0] for t in self.tokenizers]  # fmt: skip
        return {"pixel_values": pixels.permute(2, 0, 1), "input_ids": torch.stack(ids)}


class ScriptRun:
    """One class being learned as the script learns it; :meth:`step` is one pass of its loop.

    Args:
        foundation: The model, in bfloat16 for ``options.bf16`` and in float32 otherwise; it is left as it is.
        prompts: Of the class; the learned token stands where the engine's vector stands.
        files: Training images, local.
        options: Of the script.
        seed: Of everything random.

    Raises:
        StageError: The start word is not one token.
    """

    def __init__(
        self, foundation: Foundation, prompts: ClassPrompts, files: ImageFiles, options: ScriptOptions, seed: int
    ) -> None:
        import torch
        from diffusers import DDPMScheduler
        from diffusers.optimization import get_scheduler

        torch.manual_seed(seed)
        self.foundation, self.options = foundation, options
        token = placeholder_token(prompts.class_id, 0)
        self.tokenizers, self.encoders = [], []
        for encoder in foundation.text_encoders:
            words = encoder.tokenizer(prompts.initializer, add_special_tokens=False).input_ids
            if len(words) != 1:
                raise StageError(
                    f"the script starts from one token, and {prompts.initializer!r} is {len(words)} of them; "
                    "set prompts.initializer to a word that the tokenizer knows"
                )
            tokenizer, model = copy.deepcopy(encoder.tokenizer), copy.deepcopy(encoder.model).float()
            tokenizer.add_tokens([token])
            model.resize_token_embeddings(len(tokenizer))
            model.requires_grad_(False)
            table = model.get_input_embeddings().weight
            table.data[-1] = table.data[words[0]]
            table.requires_grad_(True)
            self.tokenizers.append(tokenizer)
            self.encoders.append(model.train())
        self.tables = [model.get_input_embeddings().weight for model in self.encoders]
        self.original = [table.detach().clone() for table in self.tables]
        self.noise_schedule = DDPMScheduler.from_config(foundation.scheduler_config)
        rate = options.learning_rate * options.batch_size
        self.optimizer = torch.optim.AdamW(self.tables, lr=rate, betas=(0.9, 0.999), weight_decay=1e-2, eps=1e-8)
        self.rates = get_scheduler("constant", optimizer=self.optimizer)
        templates = [prompts.learned(0, t) for t in range(len(prompts.templates))]
        images = _Images(files, foundation.files.image_size, templates, self.tokenizers)
        self.batches = self._batches(images)

    def _batches(self, images: Any) -> Iterator[dict[str, torch.Tensor]]:
        from torch.utils.data import DataLoader

        while True:
            yield from DataLoader(images, batch_size=self.options.batch_size, shuffle=True,
                                  num_workers=self.options.dataloader_workers)  # fmt: skip

    @property
    def rows(self) -> torch.Tensor:
        """What is learned, float ``[1, D]``: the new row of every token table, side by side."""
        import torch

        return torch.cat([table[-1:] for table in self.tables], -1).detach().clone()

    def step(self) -> float:
        """One optimizer step; returns its loss."""
        import torch
        import torch.nn.functional as F

        device, batch = self.foundation.device, next(self.batches)
        vae, dtype = self.foundation.vae, self.foundation.unet.dtype
        latents = vae.encode(batch["pixel_values"].to(device, dtype)).latent_dist.sample().detach()
        latents = latents * vae.config.scaling_factor
        noise = torch.randn_like(latents)
        times = torch.randint(0, self.noise_schedule.config.num_train_timesteps, (len(latents),), device=device).long()
        noisy = self.noise_schedule.add_noise(latents, noise, times)
        states, added = self._encode(batch["input_ids"].to(device), dtype)
        predicted = self.foundation.unet(noisy, times, states, added_cond_kwargs=added).sample
        if self.noise_schedule.config.prediction_type == "v_prediction":
            target = self.noise_schedule.get_velocity(latents, noise, times)
        else:
            target = noise
        loss = F.mse_loss(predicted.float(), target.float(), reduction="mean")
        loss.backward()
        self.optimizer.step()
        self.rates.step()
        self.optimizer.zero_grad()
        for tokenizer, table, original in zip(self.tokenizers, self.tables, self.original, strict=True):
            others = torch.ones(len(tokenizer), dtype=torch.bool)
            others[-1] = False
            with torch.no_grad():
                table[others] = original[others]
        return loss.detach().item()

    def _encode(self, ids: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, dict[str, torch.Tensor] | None]:
        import torch

        with torch.autocast(ids.device.type, torch.bfloat16, enabled=self.options.bf16):
            if len(self.encoders) == 1:
                return self.encoders[0](ids[:, 0])[0].to(dtype), None
            found = [model(ids[:, i], output_hidden_states=True) for i, model in enumerate(self.encoders)]
        size = self.foundation.files.image_size
        sizes = torch.tensor([[size, size, 0, 0, size, size]] * len(ids), dtype=dtype, device=ids.device)
        states = torch.cat([f.hidden_states[-2] for f in found], -1).to(dtype)
        return states, {"text_embeds": found[-1][0].to(dtype), "time_ids": sizes}
