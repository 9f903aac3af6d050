"""Code and pickles in a model's folder are never run, and nobody is asked whether they should be."""

import ast
import io
import json
import pickle
import shutil
from pathlib import Path

import pytest

import d3m_assets
from d3m_assets.assets.foundation_model import FoundationModel
from d3m_assets.errors import D3MError, TeacherError
from d3m_assets.evaluation.teacher_checkpoint import Checkpoint, load_classifier
from d3m_assets.evaluation.vision_features import load_features
from d3m_assets.foundation.files import FoundationFiles, embedded_path
from d3m_assets.foundation.loading import find_foundation, load_foundation

PACKAGE = Path(d3m_assets.__file__).parent
CALLS = ("from_pretrained", "from_single_file")
CONFIGURED = {
    "UNet2DConditionModel", "AutoencoderKL", "AutoencoderTiny", "{'unet': UNet2DConditionModel, 'vae': AutoencoderKL}[part]",
    "DDPMScheduler", "DPMSolverMultistepScheduler", "UniPCMultistepScheduler", "kind",
}  # fmt: skip
"""Classes of the installed libraries that are built of a configuration: what it says is never looked up elsewhere."""


def unsafe_calls(source: str) -> list[str]:
    """Calls that load a model and leave open whether code or pickles of it may run."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        given = {k.arg: k.value.value for k in node.keywords if isinstance(k.value, ast.Constant)}
        wanted = {"trust_remote_code": False, "use_safetensors": True, "local_files_only": True}
        if node.func.attr == "from_single_file":
            wanted = {"local_files_only": True}  # it takes the classes of the pipeline, and a file that was looked at
        elif ast.unparse(node.func) == "dg.DagsterInstance.from_config":
            continue
        elif node.func.attr == "from_config":
            wanted = {} if ast.unparse(node.func.value) in CONFIGURED else {"trust_remote_code": False}
        elif node.func.attr != "from_pretrained":
            continue
        if any(given.get(name, "missing") is not value for name, value in wanted.items()):
            found.append(f"{node.lineno}: {ast.unparse(node)}")
    return found


def test_every_call_that_loads_a_model_forbids_code_and_pickles():
    sources = {path: path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py")}
    assert {path.name: calls for path, source in sources.items() if (calls := unsafe_calls(source))} == {}
    calls = sum(source.count(".from_pretrained(\n") for source in sources.values())
    assert calls >= 4
    assert unsafe_calls("AutoModel.from_pretrained(path, trust_remote_code=False, local_files_only=True)")
    assert unsafe_calls("AutoModel.from_pretrained(path, use_safetensors=True, local_files_only=True)")
    assert unsafe_calls("AutoModel.from_config(config)")
    assert unsafe_calls("X.from_single_file(path)")
    loads = [path.name for path, source in sources.items() if "torch.load(" in source or "allow_pickle=True" in source]
    assert loads == []


class Touch:
    """What a pickle may do: call anything."""

    def __init__(self, proof):
        self.proof = str(proof)

    def __reduce__(self):
        return Path.touch, (Path(self.proof),)


@pytest.fixture
def proof(tmp_path, monkeypatch):
    """A file that hostile code would write; whoever asks is answered yes."""
    asked = []
    monkeypatch.setattr("builtins.input", lambda *words: asked.append(words) or "y")
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 20))
    yield tmp_path / "it_ran"
    assert not (tmp_path / "it_ran").exists()
    assert asked == []


def code(proof, base):
    """A module that writes the proof and defines classes as transformers and diffusers would take them."""
    return (
        f"import pathlib\npathlib.Path({str(proof)!r}).touch()\n"
        f"from {base[0]} import {base[1]}\nclass Own({base[1]}):\n    pass\n"
    )


def changed(file, **more):
    file.write_text(json.dumps(json.loads(file.read_text()) | more))


def test_code_in_a_pipeline_is_not_run(tmp_path, proof):
    model = shutil.copytree(embedded_path(), tmp_path / "model")
    for part, (library, name) in {
        "text_encoder": ("transformers", "CLIPTextModel"),
        "tokenizer": ("transformers", "CLIPTokenizer"),
        "unet": ("diffusers", "UNet2DConditionModel"),
        "vae": ("diffusers", "AutoencoderKL"),
    }.items():
        (model / part / "own.py").write_text(code(proof, (library, name)))
        names = ("AutoConfig", "AutoModel", "AutoTokenizer", name)
        for file in (model / part).glob("*config.json"):
            changed(file, auto_map={auto: "own.Own" for auto in names})
    (model / "own.py").write_text(code(proof, ("diffusers", "StableDiffusionPipeline")))
    foundation = load_foundation(find_foundation(str(model)), "cpu")
    assert type(foundation.unet).__module__.startswith("diffusers.")
    # A part, and the whole pipeline, of classes that it brings along.
    for index in ({"unet": ["own", "Own"]}, {"_class_name": ["own", "Own"]}, {"scheduler": ["own", "Own"]}):
        original = (model / "model_index.json").read_text()
        changed(model / "model_index.json", **index)
        with pytest.raises(D3MError):
            load_foundation(find_foundation(str(model)), "cpu")
        (model / "model_index.json").write_text(original)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """A small ViT with random weights."""
    from transformers import ViTConfig, ViTForImageClassification

    folder = tmp_path_factory.mktemp("vit")
    config = ViTConfig(
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=8,
        image_size=8,
        patch_size=4,
        num_labels=3,
    )
    ViTForImageClassification(config).save_pretrained(folder)
    return folder


LOADERS = {"teacher": load_classifier, "features": lambda checkpoint: load_features(checkpoint, "cpu")}


@pytest.mark.parametrize("loader", LOADERS)
def test_code_in_a_checkpoint_is_not_run_though_stdin_says_yes(classifier, tmp_path, proof, loader):
    copy = shutil.copytree(classifier, tmp_path / "copy")
    (copy / "own.py").write_text(code(proof, ("transformers", "ViTForImageClassification")))
    names = ("AutoConfig", "AutoModel", "AutoModelForImageClassification", "AutoImageProcessor")
    changed(copy / "config.json", auto_map={name: "own.Own" for name in names})
    assert LOADERS[loader](Checkpoint(copy)) is not None  # a stock model is loaded as such
    changed(copy / "config.json", model_type="of-its-own")
    with pytest.raises(TeacherError, match=r"auto_map in config\.json\), which is never run"):
        LOADERS[loader](Checkpoint(copy))


@pytest.mark.parametrize("loader", LOADERS)
def test_pickled_weights_of_a_checkpoint_are_not_read(classifier, tmp_path, proof, loader):
    copy = shutil.copytree(classifier, tmp_path / "copy")
    (copy / "model.safetensors").rename(copy / "other.safetensors")
    (copy / "pytorch_model.bin").write_bytes(pickle.dumps(Touch(proof)))
    with pytest.raises(TeacherError, match=r"safetensors"):
        LOADERS[loader](Checkpoint(copy))
    (copy / "other.safetensors").unlink()
    with pytest.raises(TeacherError, match=r"holds no \.safetensors file; pickled weights are not loaded"):
        LOADERS[loader](Checkpoint(copy))


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_pickled_weights_beside_others_are_not_read(tmp_path, proof, part):
    model = shutil.copytree(embedded_path(), tmp_path / "model")
    weights = next((model / part).glob("*.safetensors"))
    weights.rename(weights.with_name("other.safetensors"))
    name = "pytorch_model.bin" if part == "text_encoder" else "diffusion_pytorch_model.bin"
    (model / part / name).write_bytes(pickle.dumps(Touch(proof)))
    with pytest.raises(D3MError, match="cannot be loaded"):
        load_foundation(find_foundation(str(model)), "cpu")


def test_the_commit_of_a_model_from_the_hub_is_recorded(tmp_path):
    from types import SimpleNamespace

    commit = "0123456789abcdef0123456789abcdef01234567"
    snapshot = tmp_path / "models--owner--name/snapshots" / commit
    shutil.copytree(embedded_path(), snapshot)

    def recorded(path):
        context = SimpleNamespace(model=SimpleNamespace(files=FoundationFiles("owner/name", path)))
        made = FoundationModel().make_one(context, SimpleNamespace(key=None))
        return made.metrics.get("commit"), json.loads(made.files["foundation.json"]).get("commit")

    assert recorded(snapshot) == (commit, commit)
    assert recorded(embedded_path()) == (None, None)
