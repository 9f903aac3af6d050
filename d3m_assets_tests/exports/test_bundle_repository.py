import pytest

from d3m_assets.errors import BundleError
from d3m_assets.exports.bundle_repository import from_pretrained, save_pretrained
from d3m_assets.exports.compatibility import fits, model_slug
from d3m_assets_tests.distillation.test_bundle import bundle


def test_a_bundle_comes_back_from_its_folder_and_its_card_says_what_it_is(words, tmp_path):
    from huggingface_hub import ModelCard

    made = bundle(words, foundation="stabilityai/sd-turbo", dataset="ylecun/mnist", licence="CC-BY-4.0")
    file = save_pretrained(made, tmp_path / "mine")
    assert file.read_bytes() == made.to_bytes()
    assert from_pretrained(tmp_path / "mine").to_bytes() == made.to_bytes()
    assert from_pretrained(file).to_bytes() == made.to_bytes()
    card = ModelCard.load(tmp_path / "mine" / "README.md")
    facts = card.data.to_dict()
    assert facts["base_model"] == "stabilityai/sd-turbo"
    assert facts["datasets"] == ["ylecun/mnist"]
    assert facts["license"] == "cc-by-4.0"
    assert facts["library_name"] == "d3m-assets"
    for text in (made.sha256, "from_pretrained(", 'prompt_embeds=embeds["prompt_embeds"]', "128 bytes a class"):
        assert text in card.text
    save_pretrained(made, tmp_path / "mine")  # a new version replaces an old one
    (tmp_path / "mine" / "thesis.txt").write_text("keep")
    with pytest.raises(BundleError, match="something else"):
        save_pretrained(made, tmp_path / "mine")


def test_the_hub_is_asked_only_for_what_reads_like_an_id(words, tmp_path, monkeypatch):
    import huggingface_hub

    asked = []

    def download(name, file, *, revision):
        asked.append((name, file, revision))
        return save_pretrained(bundle(words), tmp_path / "hub")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.chdir(tmp_path)
    assert from_pretrained("owner/name", revision="v1").recipe == bundle(words).recipe
    assert asked == [("owner/name", "bundle.safetensors", "v1")]
    for name in ("owner/none.safetensors", "none", "a/b/c", "./none", "/none"):
        with pytest.raises(BundleError, match="none|a/b/c"):
            from_pretrained(name)
    (tmp_path / "empty").mkdir()
    with pytest.raises(BundleError, match=r"empty holds no bundle\.safetensors"):
        from_pretrained(tmp_path / "empty")
    assert len(asked) == 1


def test_without_a_network_the_reason_is_told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BundleError, match="owner/name is no local path"):  # the tests are offline
        from_pretrained("owner/name")


@pytest.mark.parametrize(
    ("foundation", "slug"),
    [
        ("embedded", "embedded"),
        ("/models/SD 1.5/", "sd-1-5"),
        ("stabilityai/stable-diffusion-xl-base-1.0", "stable-diffusion-xl-base-1-0"),
        (r"C:\models\juggernaut_v9.safetensors", "juggernaut_v9"),
        ("猫", "model"),
    ],
)
def test_file_names_tell_the_base_model(words, foundation, slug):
    assert model_slug(bundle(words, foundation=foundation)) == slug


def test_what_a_bundle_fits_is_said_in_words(words):
    from dataclasses import replace

    made = bundle(words)
    assert "part of d3m-assets" in " ".join(fits(made))
    for width, family in (
        (768, "Stable Diffusion 1.x"),
        (2048, "Stable Diffusion XL"),
        (80, "none of the widely used"),
    ):
        plan = replace(made.classes[0].plan, width=width)
        other = replace(
            made,
            recipe=replace(made.recipe, foundation="somebody/model"),
            classes=(replace(made.classes[0], plan=plan), *made.classes[1:]),
        )
        text = " ".join(fits(other))
        assert family in text
        assert "'somebody/model' (fingerprint ffffffffffff)" in text
        assert ("pooled_prompt_embeds" in text) == (width == 2048)


def test_a_card_of_the_users_is_not_replaced(words, tmp_path):
    (tmp_path / "README.md").write_text("mine")
    with pytest.raises(BundleError, match="holds something else"):
        save_pretrained(bundle(words), tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"
