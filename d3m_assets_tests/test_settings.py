from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest

from d3m_assets.errors import SettingsError
from d3m_assets.evaluation.settings import StudentSettings
from d3m_assets.settings import AutomationSettings, Settings, load_settings, setting_names


@pytest.fixture(autouse=True)
def _empty_surroundings(monkeypatch, tmp_path):
    for name in list(os.environ):
        if name.upper().startswith("D3M_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def test_arguments_beat_environment_beats_file_beats_defaults(monkeypatch):
    Path("d3m.toml").write_text("seed = 1\ndevice = 'cpu'\n[inversion]\nsteps = 10\nlearning_rate = 0.5\n")
    monkeypatch.setenv("D3M_SEED", "2")
    monkeypatch.setenv("D3M_INVERSION__STEPS", "20")
    assert load_settings().seed == 2
    settings = load_settings(seed=3, inversion={"samples_per_step": 5})
    assert (settings.seed, settings.device, settings.dataset) == (3, "cpu", "digits")
    inversion = settings.inversion
    assert (inversion.steps, inversion.learning_rate, inversion.samples_per_step) == (20, 0.5, 5)
    assert load_settings(**{"inversion.steps": 30}).inversion.steps == 30


def test_section_given_as_model_replaces_only_what_it_sets(monkeypatch):
    from d3m_assets.distillation.settings import InversionSettings

    monkeypatch.setenv("D3M_INVERSION__STEPS", "20")
    inversion = load_settings(inversion=InversionSettings(learning_rate=0.5)).inversion
    assert (inversion.steps, inversion.learning_rate) == (20, 0.5)


def test_a_recipe_gives_what_is_not_set_and_what_is_set_wins(monkeypatch):
    Path("d3m.toml").write_text("[students]\nrecipe = 'hard-label'\nbatch_size = 7\n")
    monkeypatch.setenv("D3M_STUDENTS__WEIGHT_DECAY", "0.5")
    found = load_settings(**{"students.learning_rate": 5e-3}).students
    assert (found.steps, found.optimizer, found.schedule, found.cutmix) == (4000, "sgd", "steps", 1.0)
    assert (found.batch_size, found.weight_decay, found.learning_rate) == (7, 0.5, 5e-3)
    assert pickle.loads(pickle.dumps(found)) == found
    # Given as a model, a section still only replaces what was set in it.
    assert load_settings(students=StudentSettings(steps=9)).students.model_dump() == {
        **load_settings().students.model_dump(), "steps": 9
    }  # fmt: skip


def test_named_settings_file(monkeypatch, tmp_path):
    file = tmp_path / "other.toml"
    file.write_text("budgets = ['ipc-2']\n")
    monkeypatch.setenv("D3M_SETTINGS", str(file))
    assert load_settings().budgets == ("ipc-2",)
    monkeypatch.setenv("D3M_SETTINGS", str(tmp_path / "absent.toml"))
    with pytest.raises(SettingsError, match=r"\$D3M_SETTINGS names .*absent.toml"):
        load_settings()


@pytest.mark.parametrize(
    ("variable", "value", "name", "expected"),
    [
        ("D3M_BUDGETS", "ipc-1, 4KiB", "budgets", ("ipc-1", "4KiB")),
        ("D3M_BUDGETS", '["ipc-3"]', "budgets", ("ipc-3",)),
        ("D3M_STUDENTS__SEEDS", "4,5", "students.seeds", (4, 5)),
        ("D3M_STUDENTS__SEEDS", "7", "students.seeds", (7,)),
        ("D3M_PROMPTS__TEMPLATES", "a {}, on black", "prompts.templates", ("a {}, on black",)),
        ("D3M_PROMPTS__TEMPLATES", '["a {}", "the {}"]', "prompts.templates", ("a {}", "the {}")),
        ("D3M_INVERSION__VECTORS_PER_PROMPT", "none", "inversion.vectors_per_prompt", None),
        ("D3M_INVERSION", '{"steps": 9}', "inversion.steps", 9),
        ("D3M_HOME", "elsewhere", "home", Path("elsewhere")),
        ("D3M_EVALUATION__LABELS", "soft teacher, hard", "evaluation.labels", ("hard", "soft teacher")),
        ("D3M_EVALUATION__BASELINES", "herding,random", "evaluation.baselines", ("random", "herding")),
        ("D3M_TEACHER__CHECKPOINT", "vit", "teacher.checkpoint", Path("vit")),
        ("D3M_DATASET", "", "dataset", "digits"),
    ],
)
def test_environment_forms(monkeypatch, variable, value, name, expected):
    monkeypatch.setenv(variable, value)
    found = load_settings()
    for part in name.split("."):
        found = getattr(found, part)
    assert found == expected


@pytest.mark.parametrize(
    ("variable", "message"),
    [
        ("D3M_SEDE", "unknown environment variable D3M_SEDE; did you mean D3M_SEED"),
        ("D3M_STEPS", "D3M_INVERSION__STEPS"),
        (
            "D3M_INVERSION__STEP",
            r"inversion.step \(from \$D3M_INVERSION__STEP\); did you mean inversion.steps",
        ),
        ("D3M_SEED", r"setting seed \(from \$D3M_SEED\).*integer.*got 'x'"),
        ("D3M_INVERSION", "inversion"),
        ("D3M_BUDGETS__X", "budgets"),
    ],
)
def test_bad_environment_is_named(monkeypatch, variable, message):
    monkeypatch.setenv(variable, "x")
    with pytest.raises(SettingsError, match=message):
        load_settings()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"sede": 1}, "unknown setting sede; did you mean seed"),
        ({"inversion.stepz": 1}, "unknown setting inversion.stepz; did you mean inversion.steps"),
        ({"zzz": 1}, "unknown setting zzz; remove it. Known at the top level: audit, automation, budgets"),
        ({"budgets": []}, "budgets"),
        ({"budgets": "ipc-1,ipc-1"}, "ipc-1 given twice"),
        ({"budgets": "ipc-1,IPC-1"}, r'setting budgets: "IPC-1" is not a budget: write ipc-1 \(got \'IPC-1\'\)'),
        ({"budgets": ["ipc-1", "1MB"]}, r'budgets: "1MB" is not a budget: write 1MiB \(1,048,576 bytes\) or 1000000B'),
        ({"budgets": "1kb,0B"}, r'"1kb" is not .*1KiB[^\0]*\n.*"0B" is not a budget: it holds nothing'),
        ({"budgets": 640}, "budgets"),
        ({"budgets": "../up"}, r'budgets: "../up" is not a budget'),
        ({"budgets": "[1"}, "budgets"),
        ({"seed": -1}, "seed"),
        ({"seed": {"x": 1}}, "seed"),
        ({"inversion": 3}, "inversion"),
        ({"inversion.learning_rate": float("nan")}, "inversion.learning_rate.*finite"),
        ({"students.seeds": [1, "x"]}, "students.seeds"),
        ({"students.seeds": [1, 1]}, "1 given twice"),
        ({"students.image_size": 3}, "students.image_size"),
        ({"prompts.templates": "a photo"}, "prompts.templates.*exactly once"),
        ({"prompts.templates": "a {} {name}"}, "prompts.templates.*no other brace"),
        ({"validation_fraction": 0.6}, "validation_fraction.*0.5"),
        ({"device": "gpu"}, "device.*cuda:1"),
        ({"automation.cron": "daily"}, "automation.cron.*five fields"),
        ({"generation.scheduler": "euler"}, "generation.scheduler.*ddim"),
        ({"evaluation.labels": "soft"}, "evaluation.labels.*'hard', 'soft stored' or 'soft teacher'"),
        ({"evaluation.labels": "hard,hard"}, "hard given twice"),
        ({"evaluation.baselines": "herding"}, "evaluation.baselines.*add random"),
        ({"evaluation.temperature": 0}, "evaluation.temperature"),
    ],
)
def test_bad_arguments_are_named(overrides, message):
    with pytest.raises(SettingsError, match=message):
        load_settings(**overrides)


def test_all_mistakes_at_once_with_their_places(monkeypatch):
    Path("d3m.toml").write_text("seed = 'x'\n[students]\nwitdh = 3\n")
    monkeypatch.setenv("D3M_DEVICE", "gpu")
    with pytest.raises(SettingsError) as error:
        load_settings(validation_fraction=2)
    lines = str(error.value).splitlines()
    assert len(lines) == 4
    assert any("seed (in d3m.toml)" in line for line in lines)
    assert any("students.witdh (in d3m.toml); did you mean students.width" in line for line in lines)
    assert any("device (from $D3M_DEVICE)" in line for line in lines)
    assert any(line.startswith("setting validation_fraction:") for line in lines)


@pytest.mark.parametrize("content", [b"seed = \n", b"\xff\xfe"])
def test_broken_file_is_named(content):
    Path("d3m.toml").write_bytes(content)
    with pytest.raises(SettingsError, match=r"d3m\.toml"):
        load_settings()


def test_storage_defaults_to_home(tmp_path):
    assert load_settings(home=tmp_path).storage_url == str(tmp_path / "store" / "digits")
    assert load_settings(home="data").storage_url == str(tmp_path / "data" / "store" / "digits")
    assert load_settings(storage="s3://bucket/d3m").storage_url == "s3://bucket/d3m/digits"


@pytest.mark.parametrize(
    ("dataset", "name", "expected"),
    [
        ("digits", "", "digits"), ("pets", "", "pets"), ("/a/b/pets/", "", "pets"), ("s3://bucket/cars", "", "cars"),
        ("/a/b/pets", "my pets", "my pets"), ("/a/digits", "", "digits folder"), ("/a/b/../pets", "", "pets"),
    ],
)  # fmt: skip
def test_a_dataset_is_called_by_its_folder_or_as_asked(dataset, name, expected):
    assert load_settings(dataset=dataset, name=name).dataset_name == expected


def test_every_dataset_has_a_store_of_its_own():
    urls = {load_settings(dataset=d, storage="s3://b/d3m").storage_url for d in ("digits", "/a/Pets", "/a/pets", "/")}
    assert len(urls) == 4
    assert all(url.startswith("s3://b/d3m/") for url in urls)
    assert load_settings(dataset=".").dataset_name == Path.cwd().name
    assert load_settings(storage="memory://").storage_url == "memory://digits"


def test_settings_are_frozen_and_travel_between_processes(monkeypatch):
    settings = load_settings(seed=4)
    with pytest.raises(ValueError, match="frozen"):
        settings.seed = 5
    with pytest.raises(ValueError, match="frozen"):
        settings.inversion.steps = 5
    data = pickle.dumps(settings)
    monkeypatch.setenv("D3M_SEED", "9")
    assert pickle.loads(data) == settings


def test_every_setting_is_described():
    for model in [Settings, *(type(v) for _, v in load_settings() if hasattr(v, "model_fields_set"))]:
        assert model.__doc__
        for name, field in model.model_fields.items():
            assert field.description, f"{model.__name__}.{name}"
    assert {"seed", "inversion.steps", "students.flip"} <= set(setting_names())


def test_every_distillation_has_as_many_students_as_the_others():
    assert load_settings().distillations == 3
    for seeds, count in (((0, 1, 2), 3), ((0, 1, 2, 3, 4, 5), 3), (range(8), 2), ((7,), 1), ((0, 1), 2)):
        assert load_settings(**{"students.seeds": tuple(seeds)}).distillations == count
    assert load_settings(**{"evaluation.distillations": 3}).distillations == 3
    assert load_settings(**{"evaluation.distillations": 1}).distillations == 1
    assert load_settings(**{"evaluation.table": "full", "students.seeds": (5, 6)}).distillations == 2
    assert load_settings(**{"evaluation.table": "full", "evaluation.distillations": 1}).distillations == 1
    for count in (2, 9):
        with pytest.raises(SettingsError, match=f"distillations is {count}, but students.seeds has 3; give a number"):
            load_settings(**{"evaluation.distillations": count})


@pytest.mark.parametrize("cron", ["0 2 * * *", "*/15 0-6,22 1,15 JAN-mar mon-fri", "@daily", "5/10 * * 12 7"])
def test_cron_schedules_are_taken_as_dagster_takes_them(cron):
    from dagster._utils.schedules import is_valid_cron_string

    assert AutomationSettings(cron=cron).cron == cron
    assert is_valid_cron_string(cron)


@pytest.mark.parametrize("cron", ["a b c d e", "60 2 * * *", "0 2 * * fry", "0 2 0 * *", "*/0 * * * *", "1- * * * *"])
def test_what_is_no_cron_schedule_is_refused_before_dagster_sees_it(cron):
    with pytest.raises(ValueError, match="of a cron schedule: it takes"):
        AutomationSettings(cron=cron)


def test_the_frontier_is_distilled_at_more_budgets_unless_they_are_given():
    frontier = load_settings(**{"evaluation.table": "frontier"})
    assert len(frontier.budgets) == 5
    assert frontier.evaluation.reference_budgets[0] == "16B" and frontier.evaluation.reference_budgets[-1] == "8KiB"
    assert load_settings(**{"evaluation.table": "frontier", "budgets": "ipc-1"}).budgets == ("ipc-1",)
    assert load_settings(**{"evaluation.reference_budgets": []}).evaluation.reference_budgets == ()
    with pytest.raises(SettingsError, match="reference_budgets.*is not a budget"):
        load_settings(**{"evaluation.reference_budgets": "16 bytes of it"})


def test_no_selection_is_asked_for_by_the_same_word_everywhere(monkeypatch):
    assert load_settings(selection={"criterion": "none"}).selection.criterion == "none"
    monkeypatch.setenv("D3M_SELECTION__CRITERION", "none")
    assert load_settings().selection.criterion == "none"


def test_the_embedded_model_is_not_guided_unless_asked_and_others_are():
    for foundation, given, expected in (
        ("embedded", {}, 1),
        ("/a/model", {}, 2),
        ("embedded", {"guidance_scale": 3}, 3),
    ):
        settings = load_settings(foundation=foundation, **{f"generation.{k}": v for k, v in given.items()})
        assert settings.generation.guidance_scale == expected
    assert Settings.model_fields["generation"].default.guidance_scale == 2, "the default is shared and stays as it is"


def test_there_are_fewer_steps_from_images_unless_it_is_said_how_many():
    for foundation, given, expected in (
        ("embedded", {}, 50),
        ("embedded", {"inversion.initialization": "images"}, 50),
        ("embedded", {"inversion.initialization": "words"}, 150),
        ("embedded", {"prompts.initializer": "letter"}, 150),
        ("embedded", {"prompts.initializer": "letter", "inversion.initialization": "images"}, 50),
        ("embedded", {"inversion.directional": False}, 150),
        ("embedded", {"inversion.steps": 150}, 150),
        ("/a/model", {}, 150),
    ):
        assert load_settings(foundation=foundation, **given).inversion.steps == expected, given
    assert Settings.model_fields["inversion"].default.steps == 150, "the default is shared and stays as it is"
    # What was not given is not given to another model either.
    embedded = load_settings()
    other = load_settings(foundation="/a/model", inversion=embedded.inversion, generation=embedded.generation)
    assert (other.inversion.steps, other.generation.guidance_scale) == (150, 2)


def test_rivals_have_more_students_where_there_are_several_distillations():
    default = load_settings()
    assert default.baseline_seeds(drawn=True) == tuple(range(8))
    assert default.baseline_seeds(drawn=False) == tuple(range(4))
    assert load_settings(**{"evaluation.distillations": 1}).baseline_seeds(drawn=True) == (0, 1, 2)
    given = load_settings(**{"students.seeds": (5, 1), "evaluation.baseline_students": 4})
    assert (given.baseline_seeds(drawn=True), given.baseline_seeds(drawn=False)) == ((5, 1, 0, 2), (5, 1))
