import pytest

from d3m_assets.distillation.budgets import (
    FEWEST_INT8_PROMPTS,
    least_selection_bytes,
    plan_embeddings,
    plan_selection,
    plan_storage_type,
)
from d3m_assets.distillation.selection import MOST_CANDIDATES, SelectionPlan, selection_bytes
from d3m_assets.distillation.settings import SelectionSettings
from d3m_assets.errors import BudgetError


def test_bytes_buy_prompts_first_then_vectors():
    assert plan_embeddings("ipc-1", 64, width=64, storage_type="int8").prompts == 1
    ten = plan_embeddings("ipc-10", 640, width=64, storage_type="int8")
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
        plan_embeddings("63B", 63, width=64, storage_type="int8")
    assert "63B" in str(error.value)
    assert plan_embeddings("64B", 64, width=64, storage_type="int8").payload == 64


def test_stored_norms_are_charged():
    plan = plan_embeddings("ipc-10", 640, width=64, norms=1, storage_type="int8")
    assert (plan.prompts, plan.stored_width, plan.payload) == (9, 66, 9 * 66)
    half = plan_embeddings("ipc-10", 640, width=64, storage_type="fp16", norms=2)
    assert (half.prompts, half.stored_width, half.payload) == (4, 66, 4 * 132)
    with pytest.raises(BudgetError, match="64 numbers as int8 and a norm.*66B"):
        plan_embeddings("ipc-1", 64, width=64, norms=1, storage_type="int8")
    assert "norms" not in plan_embeddings("ipc-1", 64, width=64).facts()
    assert plan.facts()["norms"] == 1


def test_int4_takes_half_the_bytes_of_int8_and_an_odd_number_a_byte_more():
    assert plan_embeddings("ipc-1", 64, width=64, storage_type="int4").payload == 64
    assert plan_embeddings("ipc-1", 64, width=64, storage_type="int4").prompts == 2
    assert plan_embeddings("33B", 33, width=65, storage_type="int4").payload == 33
    with pytest.raises(BudgetError, match="as int4.*32B"):
        plan_embeddings("31B", 31, width=64, storage_type="int4")


@pytest.mark.parametrize("allowed", range(32, 2000, 17))
@pytest.mark.parametrize("vector", [32, 64, 66])
def test_vectors_and_selection_share_a_budget_and_never_exceed_it(allowed, vector):
    plan = plan_selection(allowed, vector, images=100)
    assert plan.kept == 100
    assert plan.bytes + (allowed - plan.bytes) // vector * vector <= allowed
    if plan.bytes:
        assert 200 <= plan.candidates <= 300
        assert plan.bytes == selection_bytes(plan.candidates, 100)
        assert (allowed - plan.bytes) // vector >= 1
        # The selection takes no vector that its smallest form would have left.
        assert (allowed - plan.bytes) // vector == (allowed - selection_bytes(200, 100)) // vector
    else:
        assert plan.candidates == 100
        assert allowed < vector + selection_bytes(200, 100)


def test_a_selection_takes_what_is_asked_for():
    assert plan_selection(64, 32, images=100, candidates=200, kept=50) == SelectionPlan(
        200, 50, selection_bytes(200, 50)
    )
    assert plan_selection(320, 32, images=100, kept=20).candidates == 60
    # All candidates kept is no selection.
    assert plan_selection(320, 32, images=100, candidates=100) == SelectionPlan(100, 100)
    # What does not fit is told by its absence.
    assert plan_selection(64, 32, images=100, candidates=5000) == SelectionPlan(100, 100)
    with pytest.raises(BudgetError, match="selection.candidates=50 are fewer than the 100.*images_per_class"):
        plan_selection(320, 32, images=100, candidates=50)
    with pytest.raises(BudgetError, match="lower selection.kept"):
        plan_selection(320, 32, images=100, candidates=50, kept=60)


def test_small_budgets_are_planned_in_int4_and_large_ones_in_int8():
    assert plan_storage_type(64, width=64) == "int4"
    assert plan_storage_type(FEWEST_INT8_PROMPTS * 64, width=64) == "int8"
    # What a selection takes buys no vectors, and longer or heavier prompts are fewer.
    assert plan_storage_type(FEWEST_INT8_PROMPTS * 64, width=64, selection=1) == "int4"
    assert plan_storage_type(FEWEST_INT8_PROMPTS * 64, width=64, vectors_per_prompt=2) == "int4"
    assert plan_storage_type(FEWEST_INT8_PROMPTS * 64, width=64, norms=1) == "int4"
    assert plan_storage_type(150_528, width=768, selection=25) == "int8"


def test_more_samples_than_a_bundle_may_name_are_not_selected_from():
    assert least_selection_bytes(images=10**6) == 0
    assert plan_selection(10**6, 64, images=10**6) == SelectionPlan(10**6, 10**6)
    with pytest.raises(ValueError, match="100000"):
        SelectionSettings(candidates=MOST_CANDIDATES + 1)
