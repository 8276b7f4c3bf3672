"""Recipes: those of the package say what their sources say, and a faulty file is an error that names the fault."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import vgg16

from klvae_edu import AutoencoderKL
from klvae_edu.cli import main
from klvae_edu.config import PRESETS
from klvae_edu.discriminator import NLayerDiscriminator, receptive_field, smallest_side
from klvae_edu.training.config import TrainingConfig
from klvae_edu.training.recipes import FOLDER, YOUR_IMAGES, about, load_recipe, load_stages, recipe_names
from klvae_edu.weights.pretrained import BUNDLED

NAMES = ["kl-f8-mini", "kl-f8-mini-16", "kl-f8-openimages", "mini", "sd-vae-finetune"]


def file(tmp_path: Path, text: str, name: str = "mine.yaml") -> Path:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


def text_of(name: str) -> str:
    return (FOLDER / f"{name}.yaml").read_text(encoding="utf-8")


def test_the_recipes_are_these() -> None:
    assert recipe_names() == NAMES


# --- what comes with the package


@pytest.mark.parametrize("name", NAMES)
class TestEveryRecipe:
    def test_loads_and_differs_from_the_defaults_in_each_of_its_fields(self, name: str) -> None:
        default = TrainingConfig().to_dict()
        written = yaml.safe_load(text_of(name))
        common = {field: value for field, value in written.items() if field != "stages"}
        assert common
        for number, (config, own) in enumerate(zip(load_stages(name), written.get("stages", [{}]), strict=True)):
            fields = common | own
            if number:
                fields.pop("initialisation", None)
            values = config.to_dict()
            assert [field for field in fields if values[field] == default[field]] == []
            assert [field for field in values if values[field] != default[field] and field not in fields] == []

    def test_names_no_field_twice(self, name: str) -> None:
        """YAML would take the last without a word."""
        for part in re.split(r"^- ", text_of(name).replace("\n  ", "\n"), flags=re.MULTILINE):
            found = re.findall(r"^(\w+):", part, re.MULTILINE)
            assert len(found) == len({*found})

    def test_gives_a_reason_for_each_field(self, name: str) -> None:
        lines = [line for line in text_of(name).splitlines() if re.match(r"(  |- )?\w+: ", line)]
        bare = [line for line in lines if not re.search(r" # \S", line)]
        assert bare == []

    def test_says_at_its_head_where_it_is_from_what_it_costs_and_what_to_look_for(self, name: str) -> None:
        head = about(name)
        title, empty, *_ = head.splitlines()
        assert title and not empty
        for part in (r"^Sources?[:,]", "^Cost: ", "^What to look for: "):
            assert re.search(part, head, re.MULTILINE), part
        assert max(map(len, text_of(name).splitlines())) <= 120

    def test_is_of_a_size_that_its_model_takes(self, name: str) -> None:
        for number, config in enumerate(load_stages(name)):
            preset = config.preset if config.init is None else "sd-v1"
            assert config.size % 2 ** (len(PRESETS[preset].block_out_channels) - 1) == 0
            assert config.size >= smallest_side(config.disc_layers)
            assert config.disc_warmup <= config.disc_start < config.steps
            assert config.initialisation == "random" or number == 0


def test_kl_f8_is_what_compvis_files_say() -> None:
    config = load_recipe("kl-f8-openimages")
    assert (config.preset, config.init, config.size) == ("kl-f8", None, 256)
    assert (config.batch_size, config.accumulate, config.steps) == (12, 2, 246_803)
    assert (config.lr, config.scale_lr, config.schedule, config.warmup) == (4.5e-6, True, "constant", 0.0)
    assert (config.betas, config.weight_decay, config.grad_clip, config.ema) == ((0.5, 0.9), 0.0, math.inf, 0.0)
    assert (config.reduction, config.pixel, config.kl_weight, config.perceptual_weight) == ("sum", "l1", 1e-6, 1.0)
    assert (config.disc_weight, config.disc_loss, config.adaptive, config.alternate) == (0.5, "hinge", True, False)
    assert (config.disc_channels, config.disc_layers, config.disc_lr) == (64, 3, None)
    assert (config.mixed_precision, config.trained_part, config.data) == ("no", "all", YOUR_IMAGES)


def test_kl_f8_learns_at_one_rate_and_sees_the_discriminator_after_50001_steps() -> None:
    """CompVis' `global_step` is 0 in the first step, and the term is left out while it is below `disc_start`."""
    config = load_recipe("kl-f8-openimages")
    assert {config.lr_factor(step) for step in (1, 2, 10_000, 50_001, config.steps)} == {1.0}
    assert config.lr * config.batch_size * config.accumulate == pytest.approx(1.08e-4)
    assert [config.adversarial(step) for step in (50_000, 50_001, 50_002)] == [False, False, True]
    assert [config.trains_discriminator(step) for step in (50_001, 50_002)] == [False, True]


def test_the_fine_tune_is_what_the_model_card_says_and_marks_what_it_does_not() -> None:
    config = load_recipe("sd-vae-finetune")
    assert config.init == "stabilityai/sd-vae-ft-ema"
    assert (config.trained_part, config.pixel, config.perceptual_weight) == ("decoder", "l2", 0.1)
    assert (config.batch_size * config.accumulate, config.batch_size, config.steps) == (192, 12, 280_000)
    assert (config.disc_weight, config.data, config.preset) == (0.0, YOUR_IMAGES, TrainingConfig().preset)
    marked = re.findall(r"^(\w+):.*# \[assumed\]", text_of("sd-vae-finetune"), re.MULTILINE)
    assert marked == ["size", "lr", "schedule", "warmup", "betas", "weight_decay", "grad_clip", "ema"]
    assert (config.lr, config.scale_lr, config.ema) == (4.5e-6, False, 0.9999)


def test_mini_is_the_whole_objective_without_a_download() -> None:
    config = load_recipe("mini")
    assert (config.preset, config.size, config.data) == ("mini", 64, "photos+dead-leaves")
    assert (config.batch_size, config.lr, config.betas, config.warmup) == (12, 1e-3, (0.5, 0.9), 0.05)
    assert (config.grad_clip, config.ema, config.mixed_precision) == (1.0, 0.995, "no")
    assert config.perceptual_weight == 0
    assert config.disc_weight > 0 and config.kl_weight > 0
    assert config.disc_start == 0.75 * config.steps
    assert config.trains_discriminator(config.disc_start) and not config.adversarial(config.disc_start)


def test_what_the_comments_say_of_mini_is_so() -> None:
    config = load_recipe("mini")
    patchgan = NLayerDiscriminator(3, config.disc_channels, config.disc_layers)
    assert sum(p.numel() for p in patchgan.parameters()) == 167_841
    assert AutoencoderKL.from_preset("mini").num_parameters() == 1_250_759
    assert (receptive_field(2), receptive_field(3)) == (34, 70)
    assert config.steps * config.batch_size == 24_000
    assert round(config.steps * config.warmup) == 100


@pytest.mark.parametrize("name", BUNDLED)
def test_a_bundled_model_is_trained_whole_and_then_its_decoder_alone(name: str) -> None:
    first, *others = load_stages(name)
    assert (first.preset, first.data) == (name, YOUR_IMAGES)
    assert (first.initialisation, first.trained_part, first.disc_weight) == ("averages", "all", 0)
    for config in others:
        assert (config.preset, config.trained_part, config.data) == (name, "decoder", YOUR_IMAGES)
        assert config.disc_max_weight is not None and config.disc_ramp >= 500
    for config in (first, *others):
        assert (config.perceptual, config.mixed_precision) == ("efficientnet-lite0", "bf16")


@pytest.mark.parametrize("name", BUNDLED)
def test_what_the_comments_say_of_the_bundled_models_is_so(name: str) -> None:
    first, *others = load_stages(name)
    small, large = first.steps * first.batch_size, sum(config.steps * config.batch_size for config in others)
    head = about(name).replace("\n", " ")
    assert f"{small + large:,} crops: {small:,} of 64 × 64 pixels and {large:,} of 128 × 128" in head
    assert first.size == 64 and {config.size for config in others} == {128}
    text = text_of(name)
    for config in (first, *others):
        assert f"# {round(config.steps * config.warmup)} steps" in text
    for config in others:
        patchgan = NLayerDiscriminator(3, config.disc_channels, config.disc_layers)
        assert sum(p.numel() for p in patchgan.parameters()) == 694_689
    assert text.count("# 695,000 parameters") == len(others)


def flops(build: Callable[[], nn.Module], call: Callable[[nn.Module], object]) -> float:
    """Floating-point operations of a call, two for a multiplication and addition; nothing is computed."""
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        call(build())
    return counter.get_total_flops()


def test_the_costs_in_the_comments_are_counted() -> None:
    """A backward pass costs twice its forward pass."""

    def image(size: int) -> Tensor:
        return torch.empty(1, 3, size, size)

    def halves(preset: str, size: int) -> tuple[float, float]:
        encoder = flops(lambda: AutoencoderKL.from_preset(preset), lambda vae: vae.encode(image(size)))
        both = flops(lambda: AutoencoderKL.from_preset(preset), lambda vae: vae(image(size)))
        return encoder, both - encoder

    vgg = flops(lambda: vgg16().features[:30], lambda network: network(image(256)))
    patchgan = flops(NLayerDiscriminator, lambda network: network(image(256)))
    encoder, decoder = halves("kl-f8", 256)
    lpips = 3 * vgg  # of the image forward, of the reconstruction forward and backward

    whole = 3 * (encoder + decoder) + lpips + 9 * patchgan  # three judgements, each forward and backward
    crops = 246_803 * 24
    assert (f"{crops / 1e6:.1f}", f"{whole / 1e12:.1f}", f"{crops * whole:.1e}") == ("5.9", "2.9", "1.7e+19")
    assert 3.5 < crops * whole / 50e12 / 86_400 < 4.5  # days
    assert "5.9 million crops at 2.9 TFLOP" in about("kl-f8-openimages")
    assert "1.7e19 operations" in about("kl-f8-openimages")

    tuned, crops = encoder + 3 * decoder + lpips, 280_000 * 192
    assert (f"{crops / 1e6:.1f}", f"{tuned / 1e12:.1f}", f"{crops * tuned:.1e}") == ("53.8", "2.3", "1.2e+20")
    assert 26 < crops * tuned / 50e12 / 86_400 < 30
    assert "53.8 million crops at 2.3 TFLOP" in about("sd-vae-finetune")
    assert "1.2e20 operations" in about("sd-vae-finetune").replace("\n", " ")

    small, lpips = 3 * sum(halves("mini", 64)), lpips / 16
    assert (f"{small / 1e9:.1f}", f"{lpips / 1e9:.1f}", f"{24_000 * small / 1e15:.2f}") == ("4.8", "7.5", "0.12")
    for words in ("24,000 crops", "4.8 GFLOP each", "0.12 PFLOP", "7.5 GFLOP more"):
        assert words in about("mini").replace("\n", " ")


def test_mini_trains_both_networks_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--batch-size", "2", "--held-out", "4", "--device", "cpu", "--seed", "1"]
    stages = ["--steps", "2", "--disc-start", "1", "--disc-warmup", "1"]
    assert main(["train", "mini", *stages, *small, "--out", str(tmp_path / "run")]) == 0
    assert "Step 2 of 2" in capsys.readouterr().out
    first, second = map(json.loads, (tmp_path / "run" / "log.jsonl").read_text().splitlines())
    assert "disc_loss" in first and "adversarial" not in first
    assert "disc_loss" in second and "adversarial" in second

    again = load_recipe(tmp_path / "run" / "training.json")
    assert (again.seed, again.ema, again.mixed_precision, again.data) == (1, 0.995, "no", "photos+dead-leaves")


@pytest.mark.parametrize("name", ["kl-f8-openimages", "sd-vae-finetune"])
def test_the_large_recipes_train_what_they_say_on_a_small_scale(tmp_path: Path, name: str) -> None:
    AutoencoderKL.from_preset("tiny", seed=0).save_pretrained(tmp_path / "old")
    small = ["--init", str(tmp_path / "old"), "--data", "photos", "--lpips", "untrained", "--size", "32"]
    small += ["--batch-size", "2", "--accumulate", "2", "--steps", "2", "--disc-start", "1", "--workers", "0"]
    small += ["--held-out", "4", "--device", "cpu", "--out", str(tmp_path / "run")]
    assert main(["train", name, *small]) == 0
    first, second = map(json.loads, (tmp_path / "run" / "log.jsonl").read_text().splitlines())
    assert first["perceptual"] > 0
    assert ("adversarial" in second) == (name == "kl-f8-openimages")
    rate = 4.5e-6 * (4 if name == "kl-f8-openimages" else 1)  # scaled or not
    assert first["lr"] == second["lr"] == pytest.approx(rate)
    old, new = (AutoencoderKL.from_pretrained(tmp_path / folder) for folder in ("old", "run/model"))
    changed = {key.split(".")[0] for key, value in new.state_dict().items() if not value.equal(old.state_dict()[key])}
    encoder = {"encoder", "quant_conv"} if name == "kl-f8-openimages" else set()
    assert changed == {"decoder", "post_quant_conv"} | encoder


# --- files of your own


def test_a_recipe_of_your_own_is_found_by_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    expected = TrainingConfig(steps=7, lr=1e-3, betas=(0.5, 0.9))
    path = file(tmp_path, "# mine\nsteps: 7\nlr: 1e-3\nbetas: [0.5, 9e-1]\n")
    assert load_recipe(path) == load_recipe("mine.yaml") == load_recipe(str(path)) == expected
    assert load_recipe(path.rename("mine.YML")) == expected
    assert load_recipe(Path("mine.YML").rename("mine")) == expected
    assert about("mine") == "mine"


def test_a_recipe_of_several_stages_is_not_one_configuration(tmp_path: Path) -> None:
    path = file(tmp_path, "lr: 1e-3\nstages:\n- steps: 7\n- {steps: 3, lr: 1e-4}\n")
    first, second = TrainingConfig(steps=7, lr=1e-3), TrainingConfig(steps=3, lr=1e-4)
    assert load_stages(path) == [first, second]
    assert load_recipe(f"{path}:1") == first and load_recipe(f"{path}:2") == second
    with pytest.raises(ValueError, match=r"expected a recipe of one stage, got 2; .*mine\.yaml:1 names the first"):
        load_recipe(path)
    assert load_stages("mini") == [load_recipe("mini")]


def test_the_configuration_of_a_run_is_a_recipe(tmp_path: Path) -> None:
    config = TrainingConfig(lr=1e-7, grad_clip=math.inf, out=Path("a"), init=None, device="cpu", adaptive=False)
    path = file(tmp_path, json.dumps(config.to_dict(), indent=2), "training.json")
    assert load_recipe(path) == config
    assert about(path) == ""


def test_the_names_of_the_package_win_over_files_of_that_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = load_recipe("mini")
    monkeypatch.chdir(tmp_path)
    file(tmp_path, "steps: 1", "mini")
    assert load_recipe("mini") == expected
    assert load_recipe("./mini") == load_recipe(tmp_path / "mini") == TrainingConfig(steps=1)


@pytest.mark.parametrize(("name", "hint"), [("mimi", "did you mean 'mini'? There are"), ("resnet", "there are")])
def test_an_unknown_name_is_an_error_that_lists_the_recipes(name: str, hint: str) -> None:
    with pytest.raises(ValueError) as error:
        load_recipe(name)
    names = "kl-f8-mini, kl-f8-mini-16, kl-f8-openimages, mini, sd-vae-finetune"
    assert str(error.value) == f"there is no recipe {name!r}; {hint} {names}, and YAML files of your own"


def test_a_missing_file_is_named_and_a_folder_is_no_recipe(tmp_path: Path) -> None:
    for name in ("missing.yaml", "missing.yml", "run/training.json"):
        with pytest.raises(FileNotFoundError, match=f"{name}: there is no such file"):
            load_recipe(tmp_path / name)
    with pytest.raises(ValueError, match="there is no recipe"):
        load_recipe(tmp_path)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("stpes: 7", "there is no field 'stpes'; did you mean 'steps'?"),
        ("steps: ten", "steps: expected a whole number, got 'ten'"),
        ("steps: yes", "steps: expected a whole number, got True"),
        ("steps: 0", "steps: expected a whole number of at least 1, got 0"),
        ("betas: 0.9", "betas: expected a list, got 0.9"),
        ("preset: huge", "preset: expected one of "),
        ("", "expected lines such as `steps: 100`, got an empty file"),
        ("# steps: 7", "expected lines such as `steps: 100`, got an empty file"),
        ("- steps\n- 7", "expected lines such as `steps: 100`, got a list"),
        ("steps", "expected lines such as `steps: 100`, got a str"),
        ("stages: 7", "stages: expected a list of fields, got 7"),
        ("stages: []", "stages: expected a list of fields, got []"),
        ("steps: 7\nstages: [{stpes: 7}]", "there is no field 'stpes'; did you mean 'steps'?"),
        ("steps: 7\nlr: [1\nsize: 8", "no valid YAML: line 3: "),
        ("steps: 7\n\tlr: 1", "no valid YAML: line 2: "),
        ("steps: !!python/object/apply:os.getcwd []", "no valid YAML: line 1: could not determine a constructor"),
    ],
)
def test_a_fault_in_a_file_is_an_error_that_names_the_file_and_the_fault(
    tmp_path: Path, text: str, complaint: str
) -> None:
    path = file(tmp_path, text)
    with pytest.raises(ValueError) as error:
        load_recipe(path)
    assert str(error.value).startswith(f"{path}: {complaint}")


@pytest.mark.parametrize("content", [b"\x89PNG\r\n\x1a\n\x00", b"\xff\xfe", b"\x00\x01"])
def test_a_file_that_is_no_text_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "picture.png"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"picture\.png: (expected YAML, got no text in UTF-8|no valid YAML)"):
        load_recipe(path)


def test_nothing_in_a_file_is_executed(tmp_path: Path) -> None:
    witness = tmp_path / "witness"
    with pytest.raises(ValueError, match="no valid YAML"):
        load_recipe(file(tmp_path, f"data: !!python/object/apply:os.mkdir ['{witness}']"))
    assert not witness.exists()


def test_a_later_stage_takes_from_its_weights_what_they_bring(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text("initialisation: averages\npadding_mode: reflect\nstages: [{steps: 5}, {steps: 6}]\n")
    first, second = load_stages(file)
    assert (first.initialisation, first.padding_mode) == ("averages", "reflect")
    assert replace(second, init="run/stage-1/model").steps == 6
