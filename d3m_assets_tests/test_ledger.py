"""Budgets and the arithmetic of bytes, with literal numbers."""

import re
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from d3m_assets.errors import BudgetError, StageError
from d3m_assets.ledger import (
    Budget,
    BundleBytes,
    ImageShape,
    LedgerLine,
    affordable_images,
    byte_size,
    distillation_ledger,
    distilled_class_bytes,
    equal_bytes_images,
    holds_real_image,
    largest_budget,
    ledger_groups,
    ledger_table,
    ledger_totals,
    real_class_bytes,
    real_image_bytes,
    shared_needs,
    soft_label_bytes,
)

DIGITS, COLOUR, IMAGENET = ImageShape(8, 8, 1), ImageShape(32, 16, 3), ImageShape(224, 224, 3)


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("ipc-1", DIGITS, 64),
        ("ipc-10", DIGITS, 640),
        ("ipc-2", COLOUR, 3072),
        ("ipc-1", IMAGENET, 150_528),
        ("1B", IMAGENET, 1),
        ("500B", DIGITS, 500),
        ("2KiB", DIGITS, 2048),
        ("2KiB", IMAGENET, 2048),
        ("1MiB", DIGITS, 1_048_576),
        ("3MiB", COLOUR, 3_145_728),
        ("9" * 15 + "B", DIGITS, 10**15 - 1),
    ],
)
def test_bytes_of_a_budget(name, shape, expected):
    budget = Budget.parse(name)
    assert budget.bytes(shape) == expected
    assert (budget.name, str(budget)) == (name, name)


def test_equal_bytes_under_two_names_are_two_budgets():
    budgets = [Budget.parse(name) for name in ("1KiB", "1024B", "ipc-16")]
    assert {budget.bytes(DIGITS) for budget in budgets} == {1024}
    assert len(set(budgets)) == 3
    assert Budget.parse("1KiB") == budgets[0]


@pytest.mark.parametrize(
    ("text", "way_out"),
    [
        ("1MB", "write 1MiB (1,048,576 bytes) or 1000000B"),
        ("1kb", "write 1KiB (1,024 bytes) or 1000B"),
        ("5 kB", "write 5KiB (5,120 bytes) or 5000B"),
        ("2M", "write 2MiB (2,097,152 bytes) or 2000000B"),
        ("1GB", "write 1024MiB (1,073,741,824 bytes) or 1000000000B"),
        ("1.5MB", "write 1536KiB (1,572,864 bytes) or 1500000B"),
        ("1GiB", "write 1024MiB"),
        ("4kib", "write 4KiB"),
        ("4 KiB", "write 4KiB"),
        ("1.5KiB", "write 1536B"),
        ("0.5MiB", "write 512KiB"),
        ("640 bytes", "write 640B"),
        ("640b", "write 640B"),
        ("007B", "write 7B"),
        ("10 ipc", "write ipc-10"),
        ("10 images", "write ipc-10"),
        ("ipc10", "write ipc-10"),
        ("IPC-10", "write ipc-10"),
        ("ipc_10", "write ipc-10"),
        ("ipc-010", "write ipc-10"),
        (" ipc-10", "write ipc-10"),
        ("ipc-10\n", "write ipc-10"),
        ("ipc-1.5", "images per class are whole; write ipc-1 or ipc-2"),
        ("ipc-0.5", "images per class are whole; write ipc-1"),
        ("640", "write 640B for bytes or ipc-640 for images per class"),
        ("0B", "it holds nothing; write 1B for one byte or ipc-1 for one image per class"),
        ("0.0001KiB", "it holds nothing; write 1B for one byte or ipc-1 for one image per class"),
        ("0", "it holds nothing; write 1B for one byte or ipc-1 for one image per class"),
        ("ipc-0", "it holds nothing; write ipc-1 for one image per class"),
        ("1.5", "write for example ipc-10, 640B, 4KiB or 1MiB"),
        ("-5B", "write for example ipc-10, 640B, 4KiB or 1MiB"),
        ("ipc", "write for example ipc-10, 640B, 4KiB or 1MiB"),
        ("ipc-٣", "write for example ipc-10, 640B, 4KiB or 1MiB"),
        ("", "write for example ipc-10, 640B, 4KiB or 1MiB"),
        ("../up", "write for example ipc-10, 640B, 4KiB or 1MiB"),
        ("9" * 16 + "B", "a budget is a number of at most 15 digits"),
        ("ipc-" + "9" * 16, "a budget is a number of at most 15 digits"),
        ("976562500000kib", "a budget is a number of at most 15 digits"),  # 10**15 bytes
        ("9" * 15 + "b", "write " + "9" * 15 + "B"),
        ("999999GB", "a budget is a number of at most 15 digits"),
    ],
)
def test_other_spellings_are_told_what_to_write(text, way_out):
    with pytest.raises(BudgetError) as error:
        Budget.parse(text)
    assert str(error.value) == f'"{text}" is not a budget: {way_out}'


@pytest.mark.parametrize("unit", ["B", "b", "kB", "KB", "KiB", "kib", "MB", "MiB", "GB", "GiB", " ipc", "", " bytes"])
@pytest.mark.parametrize("number", ["1", "3.5", "64", "1000", "0100", "999999"])
def test_every_correction_is_itself_a_budget(number, unit):
    try:
        Budget.parse(number + unit)
    except BudgetError as error:
        correction = str(error).partition(" is not a budget: ")[2]
        proposed = re.findall(r"ipc-[0-9]+|[0-9]+(?:[KM]i)?B", correction)
        assert proposed or correction == "a budget is a number of at most 15 digits"
        assert [str(Budget.parse(text)) for text in proposed] == proposed


def test_parsing_needs_neither_torch_nor_pandas():
    code = (
        "import sys; from d3m_assets.ledger import Budget; Budget.parse('ipc-1');"
        "print(sorted({'torch', 'pandas', 'numpy', 'd3m_assets.settings', 'd3m_assets.store'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_which_budgets_hold_a_real_image():
    names = ("63B", "64B", "ipc-1", "1KiB")
    assert [holds_real_image(Budget.parse(n), DIGITS) for n in names] == [False, True, True, True]
    assert [holds_real_image(Budget.parse(n), COLOUR) for n in names] == [False, False, True, False]


@pytest.mark.parametrize(
    ("names", "shape", "expected"),
    [
        (("ipc-1", "1KiB", "ipc-10"), DIGITS, "1KiB"),
        (("ipc-1", "1KiB", "ipc-10"), COLOUR, "ipc-10"),
        (("1KiB", "1024B"), DIGITS, "1KiB"),
        (("1024B", "1KiB"), DIGITS, "1024B"),
    ],
)
def test_the_largest_budget_depends_on_the_images(names, shape, expected):
    assert largest_budget([Budget.parse(n) for n in names], shape).name == expected


@pytest.mark.parametrize(
    ("classes", "kept", "size"),
    [
        (10, None, 20),
        (10, 10, 20),
        (10, 11, 20),
        (10, 3, 9),
        (10, 9, 27),
        (256, 5, 15),
        (257, 5, 20),
        (1000, 5, 20),
        (65_536, 2, 8),
        (65_537, 2, 12),
        (100_000, 2, 12),
    ],
)
def test_bytes_of_a_stored_soft_label(classes, kept, size):
    assert soft_label_bytes(classes, kept) == size


def test_bytes_of_a_real_image_with_its_label():
    assert real_image_bytes(DIGITS) == 64
    assert real_image_bytes(COLOUR, label_bytes=20) == 1556


@pytest.mark.parametrize(
    ("payload", "images", "label_bytes", "expected"),
    [(640, 100, 0, 640), (640, 100, 20, 2640), (512.5, 3, 9, 539.5), (640, 0, 20, 640)],
)
def test_what_a_distilled_class_is_charged(payload, images, label_bytes, expected):
    assert distilled_class_bytes(payload, images, label_bytes=label_bytes) == expected
    assert distilled_class_bytes(payload, images) == payload


@pytest.mark.parametrize(
    ("allowed", "shape", "label_bytes", "images"),
    [(64, DIGITS, 0, 1), (127, DIGITS, 0, 1), (128, DIGITS, 0, 2), (700, DIGITS, 0, 10), (840, DIGITS, 20, 10)],
)
def test_real_images_that_fit(allowed, shape, label_bytes, images):
    assert affordable_images(allowed, shape, label_bytes=label_bytes) == images


def test_below_one_real_image_there_is_nothing_to_compare_with():
    with pytest.raises(BudgetError) as error:
        affordable_images(63, DIGITS)
    assert str(error.value) == (
        "a budget of 63 bytes a class holds no real image of 8 x 8 x 1 = 64 bytes, so there is nothing to compare "
        "with; give at least 64B or ipc-1."
    )
    with pytest.raises(BudgetError, match=r"83 bytes.*8 x 8 x 1 \+ 20 for its label = 84 bytes.*84B"):
        affordable_images(83, DIGITS, label_bytes=20)


@pytest.mark.parametrize(
    ("budget", "pool_images", "label_bytes", "images"),
    [
        ("ipc-10", 100, 0, 10),
        ("ipc-10", 100, 20, 31),  # (640 + 2000) / 84
        ("1KiB", 3, 9, 14),  # (1024 + 27) / 73
        ("ipc-1", 1, 20, 1),  # (64 + 20) / 84
    ],
)
def test_real_images_may_take_what_vectors_and_labels_of_the_pool_take(budget, pool_images, label_bytes, images):
    found = equal_bytes_images(Budget.parse(budget), DIGITS, pool_images=pool_images, label_bytes=label_bytes)
    assert found == images
    assert (
        equal_bytes_images(Budget.parse(budget), DIGITS, pool_images=1000) == Budget.parse(budget).bytes(DIGITS) // 64
    )


def test_real_images_never_take_more_bytes_than_the_distilled_class():
    rng = np.random.default_rng(0)
    for _ in range(200):
        size, pool, label = (int(n) for n in (rng.integers(64, 5000), rng.integers(1, 300), rng.integers(0, 40)))
        budget = Budget.parse(f"{size}B")
        if size + pool * label >= 64 + label:
            images = equal_bytes_images(budget, DIGITS, pool_images=pool, label_bytes=label)
            charged = distilled_class_bytes(size, pool, label_bytes=label)
            each = real_image_bytes(DIGITS, label_bytes=label)
            assert images * each <= charged < (images + 1) * each


def test_a_class_with_fewer_images_is_charged_what_it_has():
    assert real_class_bytes([100, 100], 10, DIGITS) == 640
    assert real_class_bytes([100, 5], 10, DIGITS) == 480
    assert real_class_bytes([100, 4, 5], 10, DIGITS, label_bytes=20) == pytest.approx(19 / 3 * 84)


BUNDLES = {
    "ipc-1": BundleBytes(vectors=640, file=1000, foundation=4_000_000),
    "ipc-5": BundleBytes(vectors=3200, file=3700, foundation=4_000_000),
}
POOLS = {"ipc-1": 99_999, "ipc-5": 88_888}


def test_lines_of_a_bundle_add_up_to_its_file_and_its_models():
    table = BundleBytes(vectors=256, file=900, foundation=1000, autoencoder=70).table()
    assert list(table.columns) == ["item", "scope", "kind", "bytes"]
    assert table.values.tolist() == [
        ["embedding vectors", "class", "stored", 256],
        ["recipe and names", "shared", "stored", 644],
        ["foundation model", "shared", "stored", 1000],
        ["tiny autoencoder", "shared", "stored", 70],
    ]
    assert "tiny autoencoder" not in set(BundleBytes(256, 900, 1000).table()["item"])
    assert "tiny autoencoder" in set(BundleBytes(256, 900, 1000, 0).table()["item"])


def test_the_ledger_of_a_distillation_line_by_line():
    teacher = LedgerLine("teacher", "shared", "for soft labels", 5_000)
    ledger = distillation_ledger(
        BUNDLES, POOLS, train_images=1297, shape=DIGITS, labelled_images=1000, label_bytes=20, teacher=teacher
    )
    assert list(ledger.columns) == ["budget", "item", "scope", "kind", "bytes"]
    assert ledger.values.tolist() == [
        ["ipc-1", "embedding vectors", "class", "stored", 640],
        ["ipc-1", "recipe and names", "shared", "stored", 360],
        ["ipc-1", "synthetic pool", "class", "regenerable", 99_999],
        ["ipc-1", "soft labels of the pool", "class", "for soft labels", 20_000],
        ["ipc-5", "embedding vectors", "class", "stored", 3200],
        ["ipc-5", "recipe and names", "shared", "stored", 500],
        ["ipc-5", "synthetic pool", "class", "regenerable", 88_888],
        ["ipc-5", "soft labels of the pool", "class", "for soft labels", 20_000],
        ["", "foundation model", "shared", "stored", 4_000_000],
        ["", "whole train split, one byte a channel", "class", "reference", 83_008],
        ["", "teacher", "shared", "for soft labels", 5_000],
    ]
    assert pd.api.types.is_integer_dtype(ledger["bytes"])


def test_without_stored_labels_and_teacher_the_ledger_has_no_line_of_them():
    ledger = distillation_ledger(BUNDLES, POOLS, train_images=10, shape=DIGITS, labelled_images=1000)
    assert set(ledger["kind"]) == {"stored", "regenerable", "reference"}
    assert len(ledger) == 8
    assert shared_needs(ledger) == []


def test_totals_with_and_without_shared_lines():
    ledger = distillation_ledger(BUNDLES, POOLS, train_images=10, shape=DIGITS, labelled_images=1000)
    assert ledger_totals(ledger).to_dict("records") == [
        {"budget": "ipc-1", "classes": 640, "everything": 4_001_000},
        {"budget": "ipc-5", "classes": 3200, "everything": 4_003_700},
    ]


def test_an_unfit_ledger_is_refused():
    ledger = ledger_table([LedgerLine("x", "class", "stored", 1, "ipc-1")])
    with pytest.raises(StageError, match="lacks the columns scope, bytes"):
        ledger_totals(ledger.drop(columns=["scope", "bytes"]))
    with pytest.raises(StageError, match=r"kind 'stroed' is none of .*stored"):
        ledger_totals(ledger.replace({"kind": {"stored": "stroed"}}))
    with pytest.raises(StageError, match="scope 'clas' is none of class, shared"):
        ledger_totals(ledger.replace({"scope": {"class": "clas"}}))


def test_groups_of_a_page_have_totals_with_what_only_some_rows_need():
    teacher = LedgerLine("teacher", "shared", "for rejection", 5_000)
    ledger = distillation_ledger(
        BUNDLES, POOLS, train_images=10, shape=DIGITS, labelled_images=1000, label_bytes=20, teacher=teacher
    )
    first, second, shared = ledger_groups(ledger)
    assert [group["budget"] for group in (first, second, shared)] == ["ipc-1", "ipc-5", ""]
    assert [len(group["items"]) for group in (first, second, shared)] == [4, 4, 3]
    assert first["total"] == {
        "budget": "ipc-1",
        "classes": 640,
        "everything": 4_001_000,
        "soft": [{"item": "soft labels of the pool", "bytes": 4_021_000}, {"item": "teacher", "bytes": 4_006_000}],
    }
    assert second["total"]["soft"][0]["bytes"] == 4_023_700
    assert shared["total"] is None
    assert shared_needs(ledger) == [
        "Rows that ask the teacher also need the teacher itself, 5,000 B beside the bytes of the classes."
    ]


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (64, "64 B"),
        (8300.8, "8,300.8 B"),
        (9_999, "9,999 B"),
        (10_000, "10.0 kB"),
        (83_008, "83.0 kB"),
        (999_999, "1,000.0 kB"),
        (1_000_000, "1.0 MB"),
        (4_240_000, "4.2 MB"),
        (2e9, "2.0 GB"),
        (np.nan, ""),
    ],
)
def test_byte_size(count, text):
    assert byte_size(count) == text
