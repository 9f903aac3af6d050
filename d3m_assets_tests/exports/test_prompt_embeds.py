import json

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from d3m_assets.distillation.budgets import EmbeddingPlan
from d3m_assets.distillation.bundle import Bundle, DistilledClass
from d3m_assets.distillation.generation import generate, make_scheduler
from d3m_assets.distillation.random_streams import random_stream
from d3m_assets.distillation.settings import GenerationSettings
from d3m_assets.errors import BundleError
from d3m_assets.exports.prompt_embeds import export_prompt_embeds
from d3m_assets.foundation.files import FoundationFiles
from d3m_assets.foundation.loading import load_foundation
from d3m_assets_tests.distillation.test_architectures import stock_pipeline
from d3m_assets_tests.distillation.test_bundle import bundle, recipe
from d3m_assets_tests.foundation.small_pipelines import KINDS, write_pipeline


@pytest.mark.parametrize("kind", KINDS)
def test_a_stock_pipeline_makes_the_same_images_of_them(kind, words, tmp_path):
    model = load_foundation(FoundationFiles(kind, write_pipeline(kind, tmp_path / kind)), "cpu")
    plan = EmbeddingPlan(2, 2, "int8", model.layout.width)
    vectors = np.random.default_rng(0).integers(-127, 128, (2, 2, plan.width)).astype(np.int8)
    learned = (DistilledClass(words("3", class_id=0), plan, vectors), DistilledClass(words("7"), plan, -vectors))
    made = Bundle(recipe(foundation=kind, foundation_fingerprint=model.files.fingerprint), learned)
    paths = export_prompt_embeds(made, model, tmp_path / "out")
    assert [p.name for p in paths] == [f"{kind}-d3m-000{n}.safetensors" for n in (0, 7)]
    about = json.loads((tmp_path / "out" / "prompt_embeds.json").read_text())
    assert about["bundle"] == made.sha256
    settings = GenerationSettings(**about["generation"])
    stock = stock_pipeline(model)
    for c, entry in zip(made.classes, about["classes"], strict=True):
        assert (entry["class"], len(entry["prompts"])) == (c.prompts.class_name, 2)
        ours, samples = generate(model, c.prompts, settings, 0, count=2, vectors=c.vectors, plan=c.plan)
        embeds = load_file(tmp_path / "out" / entry["file"])
        assert ("pooled_prompt_embeds" in embeds) == (kind == "sdxl")
        stock.scheduler = make_scheduler(model.scheduler_config, settings.scheduler)
        theirs = stock(
            **embeds,
            latents=torch.stack([torch.randn((4, 8, 8), generator=random_stream(s.seed)) for s in samples]),
            num_inference_steps=settings.steps,
            guidance_scale=settings.guidance_scale,
            output_type="np",
            height=16,
            width=16,
        ).images
        assert np.abs(ours / 255 - theirs).max() < 0.01


def test_a_file_says_what_it_is_and_a_used_folder_is_refused(foundation, words, tmp_path):
    made = bundle(words, foundation_fingerprint=foundation.files.fingerprint)
    path, _ = export_prompt_embeds(made, foundation, tmp_path / "out")
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"class": "3", "base_model": "embedded", "bundle": made.sha256}
    with pytest.raises(BundleError, match="--output"):
        export_prompt_embeds(made, foundation, tmp_path / "out")
    with pytest.raises(BundleError, match="another model"):
        export_prompt_embeds(bundle(words), foundation, tmp_path / "other")
