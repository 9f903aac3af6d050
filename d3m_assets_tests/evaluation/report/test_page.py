import base64
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy import stats

from d3m_assets.errors import StageError
from d3m_assets.evaluation.audit import Finding
from d3m_assets.evaluation.report import render_report
from d3m_assets.evaluation.report.tables import MAX_CLASSES, MAX_CONFUSIONS
from d3m_assets.evaluation.scores import label_robust_score
from d3m_assets.evaluation.statistics import compare_all
from d3m_assets_tests.evaluation.conftest import student_rows
from d3m_assets_tests.evaluation.report.conftest import NAMES

VOID = {"meta", "img", "br", "link"}


class Page(HTMLParser):
    def __init__(self, html):
        super().__init__()
        self.tags, self.words, self.open = [], [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "title"):
            self.words.append(data)

    @property
    def text(self):
        return re.sub(r"\s+", " ", " ".join(self.words))


def _render(metrics, ledger, samples, names=NAMES):
    provenance = {"d3m-assets": "0.1.0", "dataset": {"name": "pets", "licence": None}}
    return render_report(metrics, ledger, samples, provenance, class_names=names, dataset="pets")


def test_report_reads_as_text_with_the_verdict_first(metrics, ledger, samples):
    page = Page(_render(metrics, ledger, samples))
    assert page.open == []
    verdict = "Better than random real images at ipc-1; worse at ipc-5."
    assert page.text.index(verdict) < 100
    half = stats.t.ppf(0.975, 2) * np.sqrt(
        (np.var([0.91, 0.91, 0.92], ddof=1) + np.var([0.70, 0.72, 0.74], ddof=1)) / 3
    )
    low, high = 100 * (0.58 / 3 - half), 100 * (0.58 / 3 + half)
    corrected = compare_all(metrics)[0].p_corrected
    for words in (
        "Better than class-name prompts at every budget.",
        "The whole train split, 1,000 images, reaches 99.3 %.",
        "▲ better than random real images",
        f"+19.3 points (95 % interval +{low:.1f} to +{high:.1f})",
        "−4.3 points",
        # Random real images, class names and the whole train split, each at two budgets.
        f"Welch's t-test, Cochran-Cox, 95 %, Holm-corrected for 6 comparisons: p = {corrected:.2g}",
        "72.0 ± 5.0",
        "4,000,120",
        "4,000,600",
        "<b>猫</b>",
        "dog & bone",
        "licence none",
        "learning rate",
    ):
        assert words in page.text, words


def test_report_is_one_file_without_scripts_or_requests(metrics, ledger, samples):
    html = _render(metrics, ledger, samples)
    page = Page(html)
    assert "script" not in {tag for tag, _ in page.tags}
    addresses = [a[k] for _, a in page.tags for k in ("src", "href", "xlink:href") if a.get(k)]
    assert addresses
    assert all(a.startswith(("data:image/png;base64,", "#")) for a in addresses)
    assert not re.search(r"@import|url\((?!#)", html)
    assert "<b>猫" not in html


def test_report_is_reproducible(metrics, ledger, samples):
    assert _render(metrics, ledger, samples) == _render(metrics, ledger, samples)


def test_metrics_read_back_from_parquet_give_the_same_report(metrics, ledger, tmp_path):
    metrics.to_parquet(tmp_path / "metrics.parquet")
    assert _render(pd.read_parquet(tmp_path / "metrics.parquet"), ledger, {}) == _render(metrics, ledger, {})


def test_samples_are_pictures_with_alt_texts(metrics, ledger, samples):
    page = Page(_render(metrics, ledger, samples))
    pictures = {a["alt"]: a["src"] for tag, a in page.tags if tag == "img"}
    assert set(pictures) == {
        "8 × real, class <b>猫</b>",
        "8 × real, class dog & bone",
        "2 × distilled, ipc-1, class <b>猫</b>",
    }
    sheets = {k: Image.open(io.BytesIO(base64.b64decode(v.split(",")[1]))) for k, v in pictures.items()}
    real = np.asarray(sheets["8 × real, class dog & bone"])
    assert real.shape[1] == 4 * 32 + 3 * 2
    original = samples["real"]["dog & bone"]
    assert (real[:32:4, :32:4, 0] == original[0, :, :, 0]).all()
    assert (real[34::4, 34 * 3 :: 4, 0] == original[7, :, :, 0]).all()
    # Large images are reduced, and the cell keeps the room of a full sheet.
    assert sheets["2 × distilled, ipc-1, class <b>猫</b>"].size == (4 * 64 + 3 * 4, 2 * 64 + 4)


def test_missing_methods_leave_a_readable_report(metrics, ledger):
    alone = metrics[metrics["method"] == "whole train split"]
    text = Page(_render(alone, ledger, {})).text
    assert "Nothing to compare yet." in text
    assert "What the students saw" not in text


def test_validation_figures_say_so(metrics, ledger):
    text = Page(_render(metrics.assign(split="validation"), ledger, {})).text
    assert "come from the validation part" in text
    assert "no choice has seen" not in text


def test_many_classes_show_the_worst(metrics, ledger):
    k = 30
    names = [f"class {i:02}" for i in range(k)]
    by_class = [1 - i / 100 for i in range(k)]
    many = metrics.assign(class_accuracy=[by_class] * len(metrics))
    page = Page(_render(many, ledger, {"real": {n: np.zeros((1, 8, 8, 3), np.uint8) for n in names}}, names))
    table = page.text[page.text.index("Accuracy by class") : page.text.index("Ledger")]
    assert "does worst" in table
    assert "class 29" in table and "class 09" not in table and table.count("class ") >= MAX_CLASSES
    assert "10 more classes are not shown" in page.text


def test_soft_labels_have_rows_plots_and_totals_of_their_own(metrics, ledger):
    soft = metrics[metrics["budget"] != ""].copy()
    soft["recipe"] = [json.dumps(json.loads(r) | {"labels": {"temperature": 2.5}}) for r in soft["recipe"]]
    herding = metrics[metrics["method"] == "random real images"].assign(method="herding")
    both = pd.concat([metrics, herding, soft.assign(labels="soft teacher")], ignore_index=True)
    row = {"budget": "", "item": "teacher", "scope": "shared", "kind": "for soft labels", "bytes": 5000}
    page = Page(_render(both, pd.concat([ledger, pd.DataFrame([row])], ignore_index=True), {}))
    assert page.open == []
    assert page.text.count("Hard labels") >= 4  # headline, cards, table, plot
    assert len([a for tag, a in page.tags if tag == "figure" and a.get("role") == "img"]) == 2
    against = page.text[page.text.index("Against each baseline") : page.text.index("Every training set")]
    assert against.count("herding") == 1  # no soft rows of it, so nothing to compare there
    assert len(re.findall(r"random real images ▲ \+19\.3 \+\S+ to \+\S+ ▼ −4\.3", against)) == 2
    assert "with everything shared and teacher stored 4,005,120" in page.text
    assert page.text.index("need the teacher itself, 5,000 B") < page.text.index("Against each baseline")
    assert "with everything shared stored 4,000,120" in page.text
    assert "temperature 2.5" in page.text
    alone = Page(_render(metrics, ledger, {})).text
    assert "Against each baseline" not in alone and "Hard labels" not in alone


def test_every_part_has_a_sentence_and_the_first_is_the_headline(metrics, ledger):
    soft = metrics[metrics["budget"] != ""].assign(labels="soft teacher")
    page = render_report(pd.concat([metrics, soft]), ledger, {}, {}, class_names=NAMES)
    verdict = "better than random real images at ipc-1; worse at ipc-5."
    assert re.search(f"<h1>Hard labels: {verdict}</h1>", page)
    assert re.search(f"<li>Soft labels from the teacher: {verdict}</li>", page)


def test_a_method_far_below_does_not_flatten_the_plot_and_is_told(metrics, ledger):
    low = student_rows("collages of real patches", "ipc-1", [0.05, 0.06, 0.07])
    page = _render(pd.concat([metrics, low], ignore_index=True), ledger, {})
    assert "Below the plot: collages of real patches at ipc-1 6.0 %." in Page(page).text
    svg = page[page.index("<svg") : page.index("</svg>")]
    assert ">80<" in svg and ">20<" not in svg
    assert "Below the plot" not in _render(metrics, ledger, {})


def test_unfit_input_is_refused(metrics, ledger, samples):
    with pytest.raises(StageError, match="metrics have 2 classes, the report 3"):
        _render(metrics, ledger, samples, [*NAMES, "third"])
    with pytest.raises(StageError, match="lacks the columns scope"):
        _render(metrics, ledger.drop(columns="scope"), samples)
    with pytest.raises(StageError, match="kind 'stroed'"):
        _render(metrics, ledger.replace({"kind": {"stored": "stroed"}}), samples)


@pytest.fixture
def audit():
    shares = {"memorised": 0.0, "near_duplicate": 0.25, "off_class": 0.5}
    scores = {"precision": 0.75, "recall": 0.5, "density": 1.25, "coverage": 0.4}
    classes = [
        {"class_name": NAMES[0], **shares, **scores, "spread": 0.05},
        {"class_name": NAMES[1], **shares, **scores, "coverage": 0.3, "spread": None},
    ]
    return {
        **shares,
        **scores,
        "classes": classes,
        "train_images": 1155,
        "quantile": 0.01,
        "reference": "held-out images",
        "off_class_of_held_out": 0.021,
        "scores_k": 5,
    }


def _with_audit(metrics, ledger, audit, findings):
    return render_report(
        metrics, ledger, {}, {}, class_names=NAMES, audits={"ipc-1": audit}, findings={"ipc-1": findings}
    )


def test_faults_are_told_in_words_with_what_they_are_measured_by(metrics, ledger, audit):
    found = [
        Finding(
            "no_class_collapsed", "error", "1 class with less than 10 % of the real class's spread: <b>猫</b> (5 %)"
        )
    ]
    html = _with_audit(metrics, ledger, audit, found)
    page = Page(html)
    assert page.open == [] and "<b>猫" not in html
    for words in (
        "compared with the 1,155 training images",
        "the closest 1 % of real images are (measured on held-out images)",
        "ipc-1 0.0 25.0 50.0 5.0 (<b>猫</b>)",
        "takes 2.1 % of real images that it has not seen for another class",
        "Error: 1 class with less than 10 % of the real class's spread: <b>猫</b> (5 %).",
        "nearest neighbour number 5",
        "ipc-1 75.0 50.0 1.25 40.0 30.0 (dog & bone)",
    ):
        assert words in page.text, words
    assert "No class of any budget" not in page.text
    clean = Page(_with_audit(metrics, ledger, audit, [])).text
    assert "No class of any budget is beyond a threshold." in clean


def test_a_report_without_audits_has_no_section_of_them(metrics, ledger):
    text = Page(_render(metrics, ledger, {})).text
    assert "Faults of the distilled images" not in text
    assert "precision" not in text.lower()


def test_the_label_robust_score_shows_its_ingredients(metrics, ledger):
    text = Page(_render(metrics, ledger, {})).text
    score = label_robust_score(
        full_hard=np.mean([0.99, 0.99, 1.0]),
        synthetic_hard=np.mean([0.90, 0.91, 0.93]),
        synthetic_any=np.mean([0.90, 0.91, 0.93]),
        random_any=0.72,
    )
    assert f"ipc-1 {score.score:.3f} +19.3 8.0 hard" in text
    assert "label-robust" not in Page(_render(metrics[metrics["method"] != "whole train split"], ledger, {})).text


def test_classes_and_confusions_come_worst_first(metrics, ledger):
    ours = (metrics["method"] == "D3M") & (metrics["budget"] == "ipc-5")
    by_class = [[0.9, 0.6] if mine else a for mine, a in zip(ours, metrics["class_accuracy"], strict=True)]
    counts = [
        [[0, 0, 9], [0, 1, 1], [1, 0, 4], [1, 1, 6]] if mine else c
        for mine, c in zip(ours, metrics["confusion"], strict=True)
    ]
    text = Page(_render(metrics.assign(class_accuracy=by_class, confusion=counts), ledger, {})).text
    table = text[text.index("Accuracy by class") : text.index("What is taken for what")]
    assert "worst first by D3M ipc-5" in table
    assert table.index("dog & bone") < table.index("<b>猫</b>")
    told = text[text.index("What is taken for what") : text.index("Ledger")]
    assert "over all students of D3M ipc-5" in told
    first, second = (
        "dog & bone is taken for <b>猫</b> in 40.0 % of its images",
        "<b>猫</b> is taken for dog & bone in 10.0 %",
    )
    assert told.index(first) < told.index(second)
    assert "dog & bone 40.0 60.0" in told
    assert "<b>猫</b> 90.0 10.0" in told
    assert "What is taken" not in Page(_render(metrics.drop(columns="confusion"), ledger, {})).text


def test_a_thousand_classes_have_a_list_of_confusions_and_no_matrix(metrics, ledger):
    k = 1000
    many = metrics.assign(
        class_accuracy=[[0.5] * k] * len(metrics), confusion=[[[c, (c + 1) % k, 1] for c in range(k)]] * len(metrics)
    )
    page = Page(_render(many, ledger, {}, [f"c{i}" for i in range(k)]))
    assert page.text.count("is taken for") == MAX_CONFUSIONS + 1
    assert "In % of the images of the class in front" not in page.text


def test_the_augmentation_robust_score_is_half_with_and_half_without_augmentation(metrics, ledger):
    assert "augmentation-robust" not in Page(_render(metrics, ledger, {})).text.lower()
    own = metrics[(metrics["budget"] == "ipc-1") & metrics["method"].isin(["D3M", "random real images"])]
    plain = own.assign(
        augmentation="none",
        accuracy=own["accuracy"] - np.where(own["method"] == "D3M", 0.3, 0.1),
        recipe=[json.dumps(json.loads(r) | {"augmentation": "none", "augmentation_limits": {}}) for r in own["recipe"]],
    )
    both = pd.concat([metrics, plain], ignore_index=True)
    text = Page(_render(both, ledger, {})).text
    # (91.33 - 72) and (91.33 - 30) - (72 - 10), half each.
    gain = ((0.91 + 1 / 300 - 0.72) + (0.61 + 1 / 300 - 0.62)) / 2
    score = (np.exp(gain) - np.exp(-1)) / (np.e - np.exp(-1))
    assert f"ipc-1 {score:.3f} +19.3 −0.7" in text
    # The verdict stays that of the students with augmentation.
    assert compare_all(both)[0].difference == pytest.approx(compare_all(metrics)[0].difference)
    assert [c.budget for c in compare_all(both)] == ["ipc-1", "ipc-5"]
    assert "no augmentation" in text


def test_variants_are_compared_with_what_they_change_and_are_no_baselines(metrics, ledger):
    variants = pd.concat(
        [
            student_rows("D3M, fresh samples", "ipc-5", [0.97, 0.97, 0.99], bytes_per_class=300, images=2000),
            student_rows("D3M, equal IPC", "ipc-5", [0.70, 0.71, 0.72], bytes_per_class=300, images=10),
        ]
    )
    text = Page(_render(pd.concat([metrics, variants], ignore_index=True), ledger, {})).text
    assert "What one change brings" in text
    assert "Verdicts by paired t-test or Welch's t-test, Cochran-Cox, 95 %, Holm-corrected for 2 comparisons" in text
    assert re.search(r"D3M, fresh samples against D3M ▲ \+3\.7 \+\S+ to \+\S+ ", text)
    assert re.search(r"D3M, equal IPC against random real images ▼ −27\.3 −\S+ to −\S+ ", text)
    assert "Against each baseline" not in text


def test_what_the_teacher_says_is_counted(metrics, ledger):
    rows = [
        {
            "budget": "ipc-1",
            "images": 200,
            "off_class": 31,
            "agrees": 0.845,
            "probability": 0.8,
            "least": 0.4,
            "least_class": NAMES[0],
        }
    ]
    page = render_report(metrics, ledger, {}, {}, class_names=NAMES, agreement=rows)
    assert "ipc-1 84.5 31 80.0 40.0 ( <b>猫</b> )" in Page(page).text.replace("(<b>", "( <b>").replace(
        "</b>)", "</b> )"
    )
    assert "What the teacher says" not in Page(_render(metrics, ledger, {})).text


def test_sample_images_are_linked_to_where_they_come_from(metrics, ledger, samples):
    from d3m_assets.evaluation.report.origins import Origin

    def origin(index, real):
        return Origin(
            image=np.zeros((8, 8, 1), np.uint8),
            budget="ipc-1",
            index=index,
            prompt="<i>a photo</i>",
            seed="0/猫/0",
            vectors=["version 0123"],
            made=["run: <script>alert(1)</script>"],
            real=np.zeros((real, 8, 8, 3), np.uint8),
            real_count=9 if real else None,
            real_paths=[f"train/<b>/{k}.png" for k in range(real)],
            command="d3m lineage --pool ipc-1",
        )

    html = render_report(
        metrics, ledger, samples, {}, class_names=NAMES, origins={NAMES[1]: [origin(0, 2), origin(1, 0)]}
    )
    page = Page(html)
    assert page.open == []
    assert "script" not in {tag for tag, _ in page.tags}
    links = [attrs["href"] for tag, attrs in page.tags if tag == "a"]
    anchors = [attrs["id"] for tag, attrs in page.tags if tag == "details"]
    assert links == [f"#{anchor}" for anchor in anchors] == ["#origin-1"]
    for words in ("Where do these images come from?", "<i>a photo</i>", "9 real images, first 2 shown", "not recorded"):
        assert words in page.text, words
    assert "Where do these images" not in Page(render_report(metrics, ledger, samples, {}, class_names=NAMES)).text


def test_the_first_sentence_is_about_coded_real_images_and_the_picture_follows_it(metrics, ledger):
    coded = [
        student_rows("coded real images", b, a, bytes_per_class=size).assign(
            detail="6.4 images a class as pixels of 3 levels"
        )
        for b, a, size in (
            ("ipc-1", [0.95, 0.96, 0.95], 58),
            ("ipc-5", [0.97, 0.98, 0.98], 310),
            ("16B", [0.9] * 3, 15),
        )
    ]
    table = pd.concat([metrics.assign(detail=""), *coded], ignore_index=True)
    html = _render(table, ledger, {})
    page = Page(html)
    assert page.open == []
    (title,) = re.findall("<h1>(.*?)</h1>", html)
    assert title.startswith(("Worse than coded real images", "Too few seeds to compare with coded real images"))
    assert html.index("<h1>") < html.index("random real images at ipc-1") < html.index("Accuracy for the bytes")
    assert html.index("<svg") < html.index("Every training set")
    assert "coded real images above D3M from 60 B to 300 B, without a crossing" in page.text
    assert "coded real images at 16B : 6.4 images a class as pixels of 3 levels" in page.text.replace("16B:", "16B :")
    # The cards compare with coded real images, too.
    assert "than coded real images" in page.text[page.text.index("D3M") :]


def test_too_few_seeds_are_said_and_how_many_would_do(metrics, ledger):
    random = student_rows("random real images", "ipc-1", [0.80, 0.65, 0.52], images=2)
    rest = metrics[(metrics["method"] != "random real images") | (metrics["budget"] != "ipc-1")]
    herding = student_rows("real images by herding", "ipc-1", [0.80, 0.65, 0.52], images=2)
    text = Page(_render(pd.concat([rest, random, herding], ignore_index=True), ledger, {})).text
    assert "Too few seeds to compare with random real images at ipc-1" in text
    assert re.search(
        r"stay as they were: random real images at ipc-1 about (\d+ students of D3M \(now 3\) and )?\d+ students of its own",
        text,
    )
    against = text[text.index("Against each baseline") : text.index("Every training set")]
    assert "too few seeds +25.7" in against
    assert "≈ +25.7" not in text
