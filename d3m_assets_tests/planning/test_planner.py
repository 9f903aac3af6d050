"""Plan, loop and declared reads, on a graph of three toy assets."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from d3m_assets.errors import D3MError, StageError, StoreError, UndeclaredReadError
from d3m_assets.planning.asset import Asset, Graph, Made
from d3m_assets.planning.planner import Outcome, Plan, PlanEntry, Tally, first_of_each_asset
from d3m_assets.store import ArtefactKey, Store
from d3m_assets_tests.planning.toys import CLASSES, ToyContext, ToyImage, ToyPlanner, ToyScore, ToyWord

WORDS = {"a": "apple", "b": "bee"}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "store")


@pytest.fixture
def planner(store: Store) -> ToyPlanner:
    return ToyPlanner(ToyContext(dict(WORDS)), store)


def again(planner: ToyPlanner, **changes: Any) -> ToyPlanner:
    """Another planner over the same store, as another process would open it."""
    context = ToyContext(dict(planner.context.words))
    for name, value in changes.items():
        setattr(context, name, value)
    return ToyPlanner(context, planner.store)


def names(keys: Sequence[ArtefactKey]) -> list[str]:
    return [str(key) for key in keys]


def pending(planner: ToyPlanner) -> dict[str, list[str]]:
    return {str(entry.key): entry.reasons for entry in planner.plan().pending()}


def test_a_graph_refuses_a_dependency_that_stands_behind_or_is_missing():
    with pytest.raises(StageError, match=r"toy_image is made from toy_word; list that before it"):
        Graph(ToyImage, ToyWord)
    with pytest.raises(StageError, match=r"toy_score is made from toy_image, toy_word"):
        Graph(ToyScore)


def test_a_graph_refuses_two_assets_of_one_name():
    twin = type("ToyWord", (Asset,), {"group": "toys"})
    with pytest.raises(StageError, match="two assets called toy_word; rename"):
        Graph(ToyWord, twin)


def test_a_graph_knows_order_and_lineage():
    graph = Graph(*CLASSES)
    assert graph.names == ("toy_word", "toy_image", "toy_score")
    assert (len(graph), "toy_word" in graph, "other" in graph) == (3, True, False)
    assert graph.with_upstream("toy_image") == {"toy_word", "toy_image"}
    assert graph.with_upstream("toy_score") == set(graph.names)


def test_the_plan_lists_replicates_budgets_and_classes_in_the_order_of_the_graph(planner: ToyPlanner):
    assert names([entry.key for entry in planner.plan().entries]) == [
        "toy_word [a]", "toy_word [b]",
        "toy_image [a, small]", "toy_image [b, small]", "toy_image [a, large]", "toy_image [b, large]",
        "toy_image [a, small, replicate 1]", "toy_image [b, small, replicate 1]",
        "toy_image [a, large, replicate 1]", "toy_image [b, large, replicate 1]",
        "toy_score [small]", "toy_score [large]",
    ]  # fmt: skip


def test_a_replicated_asset_is_read_in_the_replicates_that_are_asked_for(planner: ToyPlanner):
    score = ArtefactKey("toy_score", budget="small")
    assert names(planner.inputs(ArtefactKey("toy_image", "a", "small", 1))) == ["toy_word [a]"]
    assert names(planner.inputs(score)) == [
        "toy_image [a, small]",
        "toy_image [b, small]",
        "toy_image [a, small, replicate 1]",
        "toy_image [b, small, replicate 1]",
    ]
    assert names(again(planner, score_replicates=(1,)).inputs(score)) == [
        "toy_image [a, small, replicate 1]",
        "toy_image [b, small, replicate 1]",
    ]


def test_two_replicated_assets_go_together_by_replicate(store: Store):
    class Copied(Asset):
        """A copy of an image."""

        group = "toys"
        partitions = ("class", "budget")
        replicated = True
        deps = (ToyImage,)

    planner = ToyPlanner(ToyContext(dict(WORDS)), store, Graph(*CLASSES, Copied))
    key = ArtefactKey("copied", "a", "small", 1)
    assert names(planner.inputs(key)) == ["toy_image [a, small, replicate 1]"]


def test_lineage_does_not_enter_the_fingerprint(planner: ToyPlanner):
    """``toy_word`` is a dependency of ``toy_score``, and not one of its inputs."""
    assert ToyWord in ToyScore.deps
    spec = planner.spec(ArtefactKey("toy_score", budget="small"))
    assert {name.partition(" ")[0] for name in spec.inputs} == {"toy_image"}

    class Lineage(Asset):
        """Made from nothing of the words."""

        group = "toys"
        deps = (ToyWord,)

        def inputs(self, context: Any, item: Any) -> Sequence[type[Asset]]:
            return ()

    def fingerprint(words: dict[str, str]) -> str:
        found = ToyPlanner(ToyContext(words), planner.store, Graph(ToyWord, Lineage))
        return found.spec(ArtefactKey("lineage")).fingerprint

    assert fingerprint({"a": "one"}) == fingerprint({"a": "two", "b": "three"})


def test_a_change_reaches_what_is_made_from_it_and_nothing_else(planner: ToyPlanner):
    planner.work_through(planner.plan())
    assert pending(planner) == {}
    planner.context.words["a"] = "anchor"
    assert pending(again(planner)) == {
        "toy_word [a]": ['setting word "apple" -> "anchor"'],
        "toy_image [a, small]": ["input toy_word [a] changed"],
        "toy_image [a, large]": ["input toy_word [a] changed"],
        "toy_image [a, small, replicate 1]": ["input toy_word [a] changed"],
        "toy_image [a, large, replicate 1]": ["input toy_word [a] changed"],
        "toy_score [small]": [
            "input toy_image [a, small, replicate 1] changed",
            "input toy_image [a, small] changed",
        ],
        "toy_score [large]": [
            "input toy_image [a, large, replicate 1] changed",
            "input toy_image [a, large] changed",
        ],
    }


def test_what_the_graph_has_no_place_for_is_extra(planner: ToyPlanner):
    planner.work_through(planner.plan())
    planner.store.write(ArtefactKey("of_an_older_graph"), planner.spec(ArtefactKey("toy_word", "a")), {}, {})
    fewer = again(planner, words={"a": "apple"}, budgets=("small",), replicates=1, score_replicates=(0,))
    assert names(fewer.plan().extra) == [
        "of_an_older_graph",
        "toy_image [a, large]",
        "toy_image [b, large]",
        "toy_image [a, large, replicate 1]",
        "toy_image [b, large, replicate 1]",
        "toy_image [b, small]",
        "toy_image [a, small, replicate 1]",
        "toy_image [b, small, replicate 1]",
        "toy_score [large]",
        "toy_word [b]",
    ]


def test_a_key_that_is_not_of_the_graph_is_refused(planner: ToyPlanner):
    for key in (ArtefactKey("other"), ArtefactKey("toy_word", "c"), ArtefactKey("toy_word", "a", replicate=1)):
        with pytest.raises(StageError, match="is not part of the dataset and settings"):
            planner.spec(key)


def test_reading_what_is_not_declared_is_refused(planner: ToyPlanner):
    planner.work_through(planner.plan())
    image, word = ArtefactKey("toy_image", "a", "small"), ArtefactKey("toy_word", "a")
    inputs = planner.reading(image).inputs
    assert inputs.read(word, "word.json") == b'"apple"'
    assert inputs.manifest(word).metrics == {"letters": 5}
    assert inputs.keys(ToyWord) == inputs.keys("toy_word", class_key="a") == [word]
    assert inputs.keys(ToyWord, class_key="b") == inputs.keys(ToyScore) == []
    for key, name in (
        (ArtefactKey("toy_word", "b"), "word.json"),
        (ArtefactKey("toy_image", "a", "small", 1), "image.bin"),
        (image, "image.bin"),
        (ArtefactKey("toy_score", budget="small"), "score.json"),
    ):
        for read in (lambda k, n: inputs.read(k, n), lambda k, n: inputs.manifest(k), lambda k, n: inputs.uri(k, n)):
            with pytest.raises(UndeclaredReadError, match="toy_image.*does not declare it as an input.*`deps`"):
                read(key, name)
    assert planner.reading(image, own=True).inputs.read(image, "image.bin") == b'"apple"\x00'


def test_a_maker_that_reads_what_it_does_not_declare_fails_by_name(store: Store):
    class Curious(Asset):
        """Reads the word without saying so."""

        group = "toys"
        partitions = ("class",)
        deps = (ToyWord,)

        def inputs(self, context: Any, item: Any) -> Sequence[type[Asset]]:
            return ()

        def make_one(self, context: Any, item: Any) -> Made:
            return Made(item.key, {"x": context.inputs.read(ArtefactKey("toy_word", item.key.class_key), "word.json")})

    planner = ToyPlanner(ToyContext(dict(WORDS)), store, Graph(ToyWord, Curious))
    # A defect of the asset, which is not collected like a failure of one class.
    with pytest.raises(UndeclaredReadError, match=r"toy_word \[a\] was read for curious"):
        planner.work_through(planner.plan())
    assert planner.store.manifest(ArtefactKey("curious", "a")) is None


def test_what_does_not_depend_on_a_failure_goes_on(planner: ToyPlanner):
    planner.context.failing = {"toy_image [b, large]"}
    tally = planner.work_through(planner.plan())
    assert names([outcome.key for outcome in tally.failed]) == ["toy_image [b, large]"]
    assert names(tally.blocked) == ["toy_score [large]"]
    assert tally.deferred == tally.unchanged == []
    assert "toy_score [small]" in planner.context.made
    assert "toy_score [large]" not in planner.context.made
    assert tally.assets == {"toy_word", "toy_image", "toy_score"}

    planner.context.failing.clear()
    planner.context.made.clear()
    rest = planner.work_through(planner.plan())
    assert names(rest.made) == planner.context.made == ["toy_image [b, large]", "toy_score [large]"]


def test_a_limit_defers_and_what_waits_for_the_deferred_is_deferred_too(planner: ToyPlanner):
    tally = planner.work_through(planner.plan(), limit=1)
    assert names(tally.made) == ["toy_word [a]", "toy_image [a, small]"]
    assert tally.blocked == tally.failed == []
    assert len(tally.deferred) == 10
    rounds = 1
    while planner.plan().pending():
        planner.work_through(planner.plan(), limit=1)
        rounds += 1
        assert rounds < 30
    assert names(planner.plan().extra) == []


def test_behind_a_failure_is_blocked_even_where_the_limit_ends(planner: ToyPlanner):
    """A person wants to hear of the failure, not of the limit."""
    planner.context.failing = {"toy_word [a]"}
    tally = planner.work_through(planner.plan(), limit=2)
    assert {key.class_key for key in tally.blocked if key.asset == "toy_image"} == {"a"}
    assert {key.class_key for key in tally.deferred if key.asset == "toy_image"} == {"b"}
    assert {key.asset for key in tally.blocked} == {"toy_image", "toy_score"}


def test_the_work_on_each_asset_is_wrapped(planner: ToyPlanner):
    import contextlib

    log: list[str] = []

    @contextlib.contextmanager
    def before(asset: Asset) -> Iterator[None]:
        log.append(f"into {asset.name} after {len(planner.context.made)}")
        yield
        log.append(f"out of {asset.name} after {len(planner.context.made)}")

    planner.work_through(planner.plan(), before=before)
    assert log == [
        "into toy_word after 0",
        "out of toy_word after 2",
        "into toy_image after 2",
        "out of toy_image after 10",
        "into toy_score after 10",
        "out of toy_score after 12",
    ]


def test_the_loop_is_linear_in_what_failed(store: Store):
    """Failure prevented: every blocked artefact is compared with all 40,000 failed ones."""
    classes = 40_000
    context = ToyContext({f"c{n}": "x" for n in range(classes)})
    context.budgets, context.replicates = ("small",), 1
    planner = ToyPlanner(context, store)
    plan = Plan(
        [PlanEntry(k, "missing", ["not stored"]) for name in ("toy_word", "toy_image") for k in planner.keys(name)], []
    )
    for entry in plan.entries:
        planner.spec(entry.key)

    def fail(asset: str, keys: Sequence[ArtefactKey]) -> list[Outcome]:
        return [Outcome(key, None, error=StageError("no")) for key in keys]

    begun = time.process_time()
    tally = planner.work_through(plan, materialize=fail)
    seconds = time.process_time() - begun
    assert (len(tally.failed), len(tally.blocked), len(tally.deferred)) == (classes, classes, 0)
    assert seconds < 20, "a quadratic loop takes minutes"


def test_the_last_plan_knows_what_was_made_since(planner: ToyPlanner, monkeypatch: pytest.MonkeyPatch):
    planner.context.failing = {"toy_image [b, large]"}
    planner.work_through(planner.plan())
    with monkeypatch.context() as patch:
        patch.setattr(planner, "plan", lambda: pytest.fail("planned again"))
        assert names([e.key for e in planner.last_plan().pending()]) == ["toy_image [b, large]", "toy_score [large]"]
        assert [p.message for p in planner.stale(["toy_image"])] == ["toy_image [b, large] is missing: not stored"]
    assert len(again(planner).last_plan().pending()) == 2, "without a plan, one is made"


def test_an_input_that_another_process_removed_is_found_missing(planner: ToyPlanner):
    planner.store.write(ArtefactKey("toy_word", "b"), planner.spec(ArtefactKey("toy_word", "b")), {}, {})
    keys = [ArtefactKey("toy_image", "a", "small"), ArtefactKey("toy_word", "b")]
    (outcome,) = planner.materialize("toy_image", keys[:1])
    assert outcome.manifest is None
    assert str(outcome.error) == (
        "toy_image [a, small] needs toy_word [a], which is missing. `d3m distill` makes everything in order"
    )
    (unchanged,) = planner.materialize("toy_word", keys[1:])
    assert (unchanged.skipped, planner.context.made) == (True, [])
    (forced,) = planner.materialize("toy_word", keys[1:], force=True)
    assert (forced.skipped, planner.context.made) == (False, ["toy_word [b]"])


def test_an_artefact_made_by_another_process_meanwhile_is_unchanged(planner: ToyPlanner):
    plan = planner.plan()
    other = again(planner)
    other.work_through(other.plan(), limit=1)
    tally = planner.work_through(plan)
    assert names(tally.unchanged) == ["toy_word [a]", "toy_image [a, small]"]
    assert "toy_word [a]" not in planner.context.made


class Unfinished(Asset):
    """Keeps the state of its work until it is stored."""

    group = "toys"
    partitions = ("class",)

    def make(self, context: Any, items: Sequence[Any]) -> Iterator[Made]:
        for item in items:
            name = "not a file name" if item.key.class_key == "a" else "fine.bin"
            yield Made(item.key, {name: b"x"}, stored=lambda key=item.key: self.check(context, key))

    def check(self, context: ToyContext, key: ArtefactKey) -> None:
        assert context.store.manifest(key) is not None, "not in the store yet"
        context.made.append(str(key))


def test_what_was_kept_for_unfinished_work_goes_only_when_the_result_is_stored(store: Store):
    context = ToyContext(dict(WORDS))
    context.store = store  # type: ignore[attr-defined]
    planner = ToyPlanner(context, store, Graph(Unfinished))
    refused, kept = planner.materialize("unfinished", planner.keys("unfinished"))
    assert isinstance(refused.error, StoreError)
    assert kept.error is None
    assert context.made == ["unfinished [b]"]
    assert names([e.key for e in planner.last_plan().pending()]) == ["unfinished [a]"]


def test_the_default_maker_goes_on_after_an_error_and_reports_progress(planner: ToyPlanner):
    heard: list[str] = []
    planner.context.progress = lambda event: heard.append(f"{event.stage} {event.done}/{event.total} {event.detail}")
    planner.context.failing = {"toy_word [a]"}
    outcomes = list(planner.materialize("toy_word", planner.keys("toy_word")))
    assert [str(outcome.key) for outcome in outcomes if outcome.error] == ["toy_word [a]"]
    assert heard == ["toy_word 0/2 toy_word [a]", "toy_word 1/2 toy_word [b]"]


def test_a_preview_shows_metrics_and_what_the_asset_adds(planner: ToyPlanner):
    key = ArtefactKey("toy_word", "a")
    assert planner.preview(key) == {}
    planner.work_through(planner.plan())
    assert planner.preview(key) == {"letters": 5, "word": "apple"}
    assert planner.preview(ArtefactKey("toy_image", "a", "small", 1)) == {"bytes": 8, "square_png": b"\x89PNG\x01"}


def test_verify_names_what_is_missing_wrong_and_unreadable(store: Store):
    planner = ToyPlanner(ToyContext({"odd": "x"}), store)
    planner.context.budgets = ("small",)
    assert {p.severity for p in planner.verify("toy_image")} == {"warning"}
    planner.work_through(planner.plan())
    (found,) = planner.verify("toy_image")
    assert (found.message, found.severity, found.check) == (
        "toy_image [odd, small, replicate 1]: not square",
        "error",
        "square",
    )

    (Path(store.uri(ArtefactKey("toy_image", "odd", "small"))) / "manifest.json").write_text("{")
    unreadable, _ = planner.verify("toy_image")
    assert unreadable.message.startswith("toy_image [odd, small] cannot be read:")


def test_an_asset_without_a_maker_says_so(store: Store):
    class Empty(Asset):
        """Nothing."""

        group = "toys"

    planner = ToyPlanner(ToyContext({}), store, Graph(Empty))
    with pytest.raises(NotImplementedError, match="Empty has neither make nor make_one"):
        list(planner.materialize("empty", planner.keys("empty")))


def test_small_parts_of_the_plan():
    entries = [PlanEntry(ArtefactKey(name, str(n)), "missing", ["not stored"]) for name in "xy" for n in range(3)]
    plan = Plan([*entries, PlanEntry(ArtefactKey("z"), "up to date", [])], [ArtefactKey("old")])
    assert plan.pending() == entries
    assert names([entry.key for entry in plan.of("y")]) == ["y [0]", "y [1]", "y [2]"]
    assert names([e.key for e in first_of_each_asset(entries, 2)]) == ["x [0]", "x [1]", "y [0]", "y [1]"]
    assert first_of_each_asset(entries, None) == entries
    assert '"extra": [\n  "old"\n ]' in plan.to_json()

    tally, error = Tally(), D3MError("no")
    for outcome in (
        Outcome(ArtefactKey("x"), None),
        Outcome(ArtefactKey("y"), None, skipped=True),
        Outcome(ArtefactKey("z"), None, error=error),
    ):
        tally.add(outcome)
    assert (names(tally.made), names(tally.unchanged), tally.failed[0].error) == (["x"], ["y"], error)
    assert tally.assets == {"x", "z"}
