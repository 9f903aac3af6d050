import pytest

from d3m_assets.distillation.budgets import plan_embeddings
from d3m_assets.errors import BudgetError


def test_bytes_buy_prompts_first_then_vectors():
    assert plan_embeddings("ipc-1", 64, width=64).prompts == 1
    ten = plan_embeddings("ipc-10", 640, width=64)
    assert (ten.prompts, ten.vectors, ten.payload) == (10, 1, 640)
    large = plan_embeddings("100KiB", 102_400, width=64, max_prompts=32, max_vectors=16)
    assert (large.prompts, large.vectors) == (32, 16)
    assert large.payload <= 102_400


def test_prompts_never_exceed_what_the_caller_allows():
    assert plan_embeddings("ipc-10", 640, width=64, max_prompts=3).prompts <= 3


def test_fixed_vectors_and_fp16_are_honoured_within_the_budget():
    plan = plan_embeddings("ipc-10", 640, width=64, vectors_per_prompt=2, storage_type="fp16")
    assert (plan.vectors, plan.storage_type) == (2, "fp16")
    assert 0 < plan.payload <= 640


def test_a_budget_too_small_names_the_smallest_that_can():
    with pytest.raises(BudgetError, match="64B") as error:
        plan_embeddings("63B", 63, width=64)
    assert "63B" in str(error.value)
    assert plan_embeddings("64B", 64, width=64).payload == 64


def test_stored_norms_are_charged():
    plan = plan_embeddings("ipc-10", 640, width=64, norms=1)
    assert (plan.prompts, plan.stored_width, plan.payload) == (9, 66, 9 * 66)
    half = plan_embeddings("ipc-10", 640, width=64, storage_type="fp16", norms=2)
    assert (half.prompts, half.stored_width, half.payload) == (4, 66, 4 * 132)
    with pytest.raises(BudgetError, match="64 numbers as int8 and a norm.*66B"):
        plan_embeddings("ipc-1", 64, width=64, norms=1)
    assert "norms" not in plan_embeddings("ipc-1", 64, width=64).facts()
    assert plan.facts()["norms"] == 1
