"""Command line: entry point, `klvae train`, exit codes, and errors in one line."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from klvae_edu import AutoencoderKL, cli, environment
from klvae_edu.cli import main, train_stages
from klvae_edu.data import photographs, save_image
from klvae_edu.environment import PROCESS_SETTINGS
from klvae_edu.training.config import TrainingConfig
from klvae_edu.training.recipes import YOUR_IMAGES, about, load_recipe, load_stages, recipe_names


def error_of(capsys: pytest.CaptureFixture[str]) -> str:
    """Read stderr, which must be one line that begins with the program's name."""
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("klvae: ")
    return line.removeprefix("klvae: ")


def test_help_names_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    assert all(command in printed for command in cli.COMMANDS)


def test_an_unknown_command_or_a_value_out_of_range_is_wrong_use(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, word in ((["trian"], "trian"), (["train", "--steps", "0"], "steps: expected"), ([], "train")):
        try:
            code = main(arguments)
        except SystemExit as stop:
            code = stop.code
        assert code == 2
        assert word in capsys.readouterr().err


def test_the_console_trains_resumes_and_reconstructs(tmp_path: Path) -> None:
    """Run the commands in separate processes."""
    save_image(photographs("held-out")["chelsea"][:, 100:145, 100:161], tmp_path / "cat.png")

    def klvae(*arguments: str) -> str:
        command = [sys.executable, "-m", "klvae_edu", *arguments]
        env = {**os.environ, **PROCESS_SETTINGS}  # no restart is needed
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    options = ["--size", "16", "--batch-size", "2", "--steps", "3", "--held-out", "4", "--device", "cpu"]
    printed = klvae("train", "--data", "photos", *options)
    assert "Step 3 of 3" in printed and "Mean PSNR on 4 validation crops of 16x16 pixels" in printed
    assert re.search(r"\d+\.\d\d dB  model\n", printed) and "dB  patch-PCA" in printed and "dB  bicubic" in printed
    assert "klvae reconstruct PHOTO --model run/model" in printed
    klvae("train", "--data", "dead-leaves", *options, "--init", "run/model", "--out", "run-2")
    (line,) = klvae("reconstruct", "cat.png", "--model", "run-2/model").splitlines()
    assert re.match(r"cat\.png: model \d+\.\d\d dB, .* -> reconstructions/cat_reconstruction\.png$", line)
    assert (tmp_path / "reconstructions" / "cat_reconstruction.png").is_file()


def test_a_run_that_is_in_the_way_is_an_error_with_another_name_for_the_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "log.jsonl").touch()
    assert main(["train", "--out", str(tmp_path), "--size", "16"]) == 2
    assert "--out" in error_of(capsys)


@pytest.mark.parametrize(
    ("data", "out", "folder"),
    [(".", "run", "."), ("images", "images/deep/run", "images"), ("photos+images", "images", "images")],
)
def test_a_run_is_not_written_among_the_images_it_is_trained_on(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    data: str,
    out: str,
    folder: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").touch()
    assert main(["train", "--data", data, "--out", out]) == 2
    assert "out: expected a folder outside of the images" in (error := error_of(capsys))
    assert f"; {out} is inside of {folder}. Name another folder" in error
    assert [path.name for path in tmp_path.rglob("*")] == ["images", "a.png"]


class TestTrainConfig:
    def test_the_options_go_before_the_recipe_and_the_recipe_before_the_defaults(self, tmp_path: Path) -> None:
        file = tmp_path / "mine.yaml"
        file.write_text("steps: 7\nlr: 1e-4\nadaptive: false\n")
        expected = TrainingConfig(steps=9, lr=1e-4, adaptive=False)
        assert train_stages([str(file), "--steps", "9"]) == [expected]
        assert train_stages([str(file), "--steps", "9", "--adaptive"]) == [replace(expected, adaptive=True)]
        assert train_stages([]) == [TrainingConfig()]
        assert train_stages(["--steps", "9"]) == [TrainingConfig(steps=9)]

    @pytest.mark.parametrize("name", recipe_names())
    def test_the_command_of_a_run_from_a_recipe_needs_no_recipe(self, name: str) -> None:
        for config, of_recipe in zip(train_stages([name, "--seed", "5"]), load_stages(name), strict=True):
            assert replace(config, out=of_recipe.out, init=of_recipe.init) == replace(of_recipe, seed=5)
            program, command, *options = shlex.split(config.command())
            assert (program, command) == ("klvae", "train")
            assert train_stages(options) == [config]

    def test_the_stages_of_a_recipe_follow_each_other(self, tmp_path: Path) -> None:
        file = tmp_path / "mine.yaml"
        file.write_text(
            "preset: tiny\ninitialisation: averages\n"
            "stages:\n- steps: 7\n- {steps: 3, trained_part: decoder}\n- size: 64\n"
        )
        first, second, third = train_stages([str(file), "--out", "run", "--seed", "5"])
        common = TrainingConfig(seed=5, preset="tiny")
        assert first == replace(common, steps=7, initialisation="averages", out=Path("run/stage-1"))
        folders = [str(Path(f"run/stage-{number}/model")) for number in (1, 2)]
        assert second == replace(common, steps=3, trained_part="decoder", init=folders[0], out=Path("run/stage-2"))
        assert third == replace(common, size=64, init=folders[1], out=Path("run/stage-3"))

        assert train_stages([f"{file}:3", "--init", "weights"]) == [
            TrainingConfig(preset="tiny", size=64, init="weights")
        ]
        assert train_stages([f"{file}:1", "--steps", "2"]) == [
            TrainingConfig(preset="tiny", initialisation="averages", steps=2)
        ]

    def test_a_later_stage_alone_needs_weights(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        file = tmp_path / "mine.yaml"
        file.write_text("stages:\n- steps: 7\n- steps: 3\n")
        assert main(["train", f"{file}:2"]) == 2
        assert error_of(capsys) == "init: stage 2 begins with trained weights; name them: --init FOLDER"
        assert main(["train", f"{file}:3"]) == 2
        assert "expected a stage from 1 to 2, got 3" in error_of(capsys)

    def test_stages_are_trained_one_after_the_other_and_resumed(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        file = tmp_path / "mine.yaml"
        file.write_text(
            "size: 16\nbatch_size: 2\nheld_out: 2\ndevice: cpu\n"
            "stages:\n- steps: 2\n- {steps: 1, trained_part: decoder}\n"
        )
        command = ["train", str(file), "--out", str(tmp_path / "run")]
        assert main(command) == 0
        assert "Stage 1 of 2, in " in (printed := capsys.readouterr().out) and "Stage 2 of 2, in " in printed
        first, second = (AutoencoderKL.from_pretrained(tmp_path / "run" / f"stage-{n}" / "model") for n in (1, 2))
        same = {name: value.equal(second.state_dict()[name]) for name, value in first.state_dict().items()}
        assert all(same[name] for name in same if name.startswith("encoder"))
        assert not all(same[name] for name in same if name.startswith("decoder"))
        assert main(command) == 2  # the folders are in use
        assert main([*command, "--resume", "auto"]) == 0

    def test_help_names_the_recipes_and_with_one_shows_its_values(self, capsys: pytest.CaptureFixture[str]) -> None:
        def help_of(*arguments: str) -> str:
            with pytest.raises(SystemExit) as stop:
                main(["train", *arguments, "--help"])
            assert stop.value.code == 0
            return " ".join(capsys.readouterr().out.replace("│", " ").split())

        plain, of_mini = help_of(), help_of("mini")
        assert "usage: klvae train [RECIPE]" in plain and "usage: klvae train mini" in of_mini
        for name in recipe_names():
            assert f" {name} {about(name).splitlines()[0]}" in plain
        assert "optimiser steps (default: 3000)" in plain
        assert f"optimiser steps (default: {load_recipe('mini').steps})" in of_mini
        assert about("mini").splitlines()[0] in of_mini

    def test_a_mistyped_recipe_or_option_is_an_error_with_the_nearest(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["train", "mnii"]) == 2
        assert "there is no recipe 'mnii'; did you mean 'mini'?" in error_of(capsys)
        with pytest.raises(SystemExit) as stop:
            main(["train", "mini", "--bach-size", "4"])
        assert stop.value.code == 2
        printed = capsys.readouterr().err
        assert "--bach-size" in printed and "--batch-size" in printed

    def test_a_fault_in_a_file_is_one_line_that_names_it(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        file = tmp_path / "mine.yaml"
        file.write_text("steps: many\n")
        assert main(["train", str(file)]) == 2
        assert error_of(capsys) == f"{file}: steps: expected a whole number, got 'many'"

    @pytest.mark.parametrize("name", [name for name in recipe_names() if load_stages(name)[0].data == YOUR_IMAGES])
    def test_a_recipe_for_images_of_your_own_asks_for_them(
        self, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.chdir(tmp_path)
        assert main(["train", name]) == 2
        assert "--data FOLDER" in error_of(capsys)
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "restarts"),
    [
        (["train"], True),
        (["reconstruct", "a.jpg"], True),
        (["evaluate", "kl-f8-mini"], True),
        (["inspect", "kl-f8-mini"], True),
        (["convert", "a", "b"], False),
        (["grade", "folder"], False),
        (["doctor"], False),
        (["--help"], False),
        ([], False),
    ],
)
def test_only_commands_that_compute_start_anew_with_the_process_settings(
    arguments: list[str], restarts: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    monkeypatch.setattr(cli, "restart_with_process_settings", lambda: calls.append("restart"))
    monkeypatch.setattr(cli, "main", lambda: calls.append("main") or 3)
    monkeypatch.setattr(sys, "argv", ["klvae", *arguments])
    with pytest.raises(SystemExit) as stop:
        cli.run()
    assert stop.value.code == 3
    assert calls == (["restart"] if restarts else []) + ["main"]


@pytest.mark.skipif(sys.platform != "linux", reason="the settings are for glibc and libgomp")
def test_the_trainer_runs_with_the_process_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The settings are read from the memory of the process, as its libraries read them."""
    code = (
        "import klvae_edu.training.trainer as trainer\n"
        "trainer.train = lambda config: print(open('/proc/self/environ').read()) or exit(0)\n"
        "import klvae_edu.cli\n"
        "klvae_edu.cli.run()\n"
    )
    for name in (*PROCESS_SETTINGS, environment._RESTART_MARK):
        monkeypatch.delenv(name, raising=False)
    done = subprocess.run([sys.executable, "-c", code, "train"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all(f"{name}={value}" in done.stdout.split("\0") for name, value in PROCESS_SETTINGS.items())
