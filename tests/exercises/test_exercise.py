"""`check`, `hint`, `solution`, `progress`, and the verdict on answers that do not run."""

from __future__ import annotations

import json
import random
import subprocess
import sys

import numpy as np
import pytest
import torch

from klvae_edu import exercises
from klvae_edu.exercises import EXERCISES, CheckFailed, Verdict, check, hint, progress, solution, whose
from klvae_edu.exercises.attempt import Local
from klvae_edu.exercises.exercise import Exercise
from klvae_edu.exercises.judges.functions import judge_function, probe
from tests.exercises.answers import imported


@pytest.fixture(autouse=True)
def new_session(monkeypatch, tmp_path):
    """Simulate a new kernel in an empty folder, used by a reader."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("KLVAE_EDU_STRICT", raising=False)
    monkeypatch.delenv("KLVAE_EDU_QUIET", raising=False)
    monkeypatch.setattr(exercises, "_passed", set())
    monkeypatch.setattr(exercises, "_hints_given", {})


def reparameterize(mean, logvar, noise):
    return mean + torch.exp(logvar / 2) * noise


def var_for_std(mean, logvar, noise):
    return mean + torch.exp(logvar) * noise


# What check prints and returns


def test_a_right_answer_is_returned_and_reported_in_one_line(capsys):
    assert check("01.2", reparameterize) is reparameterize
    assert capsys.readouterr().out == "01.2 The reparameterised sample: passed\n"


def test_a_wrong_answer_is_replaced_by_the_finished_version_and_its_mistake_named_in_one_line(capsys):
    assert check("01.2", var_for_std) is EXERCISES["01.2"].reference
    out = capsys.readouterr().out
    assert out.startswith("01.2 The reparameterised sample: not right yet: the noise is multiplied by the variance")
    assert out.count("\n") == 1


@pytest.mark.parametrize("attempt", [None, ..., lambda *args: ...])
def test_a_blank_is_reported_as_not_attempted_in_one_line(capsys, attempt):
    assert check("01.2", attempt) is EXERCISES["01.2"].reference
    out = capsys.readouterr().out
    assert out == "01.2 The reparameterised sample: not attempted yet (the cells below use the finished version)\n"


def test_the_finished_version_does_not_count_as_the_readers(capsys):
    """`f = check(id, f)` runs twice, first with a wrong answer."""
    finished = check("01.2", var_for_std)
    check("01.2", finished)
    assert "not attempted yet: this is the finished version" in capsys.readouterr().out.splitlines()[1]


def test_whose_answer_it_is_depends_on_whether_it_passed():
    assert whose("01.2", check("01.2", reparameterize)) == "your"
    assert whose("01.2", check("01.2", var_for_std)) == "the finished"


def test_a_not_implemented_error_of_pytorch_is_no_blank(capsys):
    check("01.2", lambda mean, logvar, noise: torch.nn.ModuleList()(mean))  # a list has no forward
    assert "not right yet: it raised NotImplementedError: Module [ModuleList]" in capsys.readouterr().out


@pytest.mark.parametrize("attempt", [None, var_for_std])
def test_strict_mode_raises_for_all_that_does_not_pass(monkeypatch, attempt):
    monkeypatch.setenv("KLVAE_EDU_STRICT", "1")
    with pytest.raises(CheckFailed, match=r"01\.2 .* not (attempted|right) yet"):
        check("01.2", attempt)
    assert issubclass(CheckFailed, AssertionError)


def test_strict_mode_lets_a_right_answer_pass(monkeypatch):
    monkeypatch.setenv("KLVAE_EDU_STRICT", "1")
    assert check("01.2", reparameterize) is reparameterize


@pytest.mark.parametrize("function", [lambda id: check(id, None), hint, solution])
def test_an_unknown_id_names_the_nearest(function):
    with pytest.raises(ValueError, match=r"no exercise '1\.2'; the nearest are 01\.2"):
        function("1.2")


# Verdicts on answers that do not run


def test_a_partly_filled_skeleton_has_an_open_gap():
    def partly(mean, logvar, noise):
        std = ...
        return mean + std * noise

    verdict = EXERCISES["01.2"].run(partly)
    assert verdict.attempted and not verdict.passed
    assert "a gap `...` is still open" in verdict.message


def test_a_method_called_on_a_gap_is_an_open_gap():
    def partly(mean, logvar):
        each = ...
        return each.flatten(1).sum(1)

    assert "a gap `...` is still open" in EXERCISES["02.1"].run(partly).message


def test_one_open_result_of_two_is_an_open_gap():
    verdict = EXERCISES["01.1"].run(lambda parameters: (parameters.chunk(2, dim=1)[0], ...))
    assert verdict.attempted and "a gap `...` is still open" in verdict.message


def test_two_open_results_are_a_blank():
    assert EXERCISES["01.1"].run(lambda parameters: (..., ...)) == Verdict(passed=False, attempted=False)


@pytest.mark.parametrize("id", ["01.1", "01.2", "01.3", "02.1", "02.2", "02.3", "02.4"])
def test_a_forgotten_return_is_told(id):
    def forgetful(*tensors):
        EXERCISES[id].reference(*tensors)

    assert EXERCISES[id].run(forgetful) == Verdict(False, True, "it returns None: is a return missing?")


def test_a_none_among_the_results_is_told():
    message = EXERCISES["01.1"].run(lambda parameters: (parameters.chunk(2, dim=1)[0], None)).message
    assert message.startswith("logvar: expected a Tensor, got NoneType")


def test_an_exception_is_told_in_one_line_with_its_type():
    def raising(mean, logvar, noise):
        raise KeyError("two\nlines")

    message = EXERCISES["01.2"].run(raising).message
    assert message.startswith("it raised KeyError: ") and "\n" not in message


def test_an_exception_that_a_mistake_raises_as_well_names_the_mistake():
    mistakes = [("two of them", lambda x: x + x[0, :2]), ("a wrong shape", lambda x: x.reshape(5)), ("no sum", len)]
    judge = judge_function(lambda x: x.sum(1), [probe((2, 3)), probe((4, 6))], mistakes, inputs=("x",))
    exercise = Exercise("00.0", "", "", 1, 1, None, (), (), judge)
    assert exercise.run(lambda x: torch.reshape(x, (5,))).message == "a wrong shape"
    assert exercise.run(lambda x: x - x[0, 1:]).message == "two of them"
    # An exception of the same type with another text; and one on another probe than the first.
    assert exercise.run(lambda x: x.reshape(7)).message.startswith("it raised RuntimeError: shape '[7]'")
    assert "it raised RuntimeError" in exercise.run(lambda x: x.sum(1) if len(x) == 2 else x.reshape(5)).message


def test_leaving_python_is_an_exception_like_others():
    def leaving(mean, logvar, noise):
        sys.exit(1)

    assert EXERCISES["01.2"].run(leaving) == Verdict(False, True, "it raised SystemExit: 1, in the line `sys.exit(1)`")


def test_an_exception_on_some_inputs_names_them():
    def only_images(parameters):
        mean, logvar = parameters.chunk(2, dim=-3)
        return mean, logvar.clamp(-30, 20)

    message = EXERCISES["01.1"].run(only_images).message
    assert "it raised IndexError" in message and message.endswith("for inputs of shape (6, 4)")


def test_too_few_parameters_are_told():
    assert "it raised TypeError" in EXERCISES["01.2"].run(lambda mean, logvar: mean).message


def test_a_result_instead_of_a_function_is_told():
    message = EXERCISES["01.2"].run(torch.zeros(3)).message
    assert message == "expected the function itself, got its result or another object (Tensor)"


def test_an_object_instead_of_a_class_is_told():
    message = EXERCISES["01.4"].run(EXERCISES["01.4"].reference(torch.zeros(2, 4))).message
    assert message == "expected the class itself, got an object of type DiagonalGaussian"


def test_a_wrong_shape_is_told_with_the_expected_one():
    message = EXERCISES["01.2"].run(lambda mean, logvar, noise: mean[:, :1]).message
    assert "expected shape (3, 4, 5, 2), got (3, 1, 5, 2)" in message


def test_a_wrong_type_is_told():
    assert "expected a Tensor, got float" in EXERCISES["02.1"].run(lambda mean, logvar: 1.0).message
    assert "expected a Tensor, got ndarray" in EXERCISES["02.1"].run(lambda mean, logvar: np.zeros(3)).message


def test_whole_numbers_are_told():
    message = EXERCISES["01.2"].run(lambda mean, logvar, noise: mean.long()).message
    assert "expected floating-point numbers, got torch.int64" in message


def test_one_result_for_two_is_told():
    assert "expected mean and logvar, got Tensor" in EXERCISES["01.1"].run(lambda parameters: parameters).message


def test_nan_is_told():
    message = EXERCISES["02.1"].run(lambda mean, logvar: (mean**2 + logvar.log()).flatten(1).sum(1)).message
    assert "contains NaN" in message


def test_a_common_factor_is_told():
    message = EXERCISES["02.1"].run(lambda mean, logvar: 3 * EXERCISES["02.1"].reference(mean, logvar)).message
    assert "every value is 3 times what it should be" in message


def test_other_wrong_values_are_told_with_the_largest_difference():
    reparameterize = EXERCISES["01.2"].reference
    judge = judge_function(reparameterize, [probe(*[(3, 4, 5, 2)] * 3)], [], inputs=("mean", "logvar", "noise"))
    message = judge(Local(lambda mean, logvar, noise: mean + logvar.tanh() * noise))
    assert "where they differ most" in message
    assert message.endswith("for inputs of shape (3, 4, 5, 2)")  # all three have this shape, so it is named once


def test_different_shapes_of_inputs_are_all_told():
    message = EXERCISES["02.3"].run(lambda mean, logvar, noise: mean[:, 0, 0]).message
    assert message.endswith("for inputs of shape (3, 4, 5, 2), (6, 3, 4, 5, 2)")


def test_inputs_that_are_numbers_are_told_by_name_and_value():
    judge = judge_function(lambda n, rate: torch.ones(n) / rate, [(3, 2.5)], [], inputs=("n", "rate"))
    wrong = Local(lambda n, rate: torch.tensor([5.0, -1.0, 0.5]))
    assert judge(wrong).endswith(", for n = 3, rate = 2.5")
    assert (
        EXERCISES["12.1"]
        .run(lambda *given: torch.arange(1.0, given[0] + 1))
        .message.endswith(", for length = 12, before = 4, after = 3")
    )


def test_inputs_that_are_neither_tensors_nor_numbers_are_not_told():
    judge = judge_function(lambda words: torch.ones(len(words)), [(["a", "b"],)], [], inputs=("words",))
    assert judge(Local(lambda words: torch.arange(2.0))).endswith("and yours is 0")


def test_random_numbers_are_told():
    def own_noise(mean, logvar, noise):
        return mean + torch.exp(logvar / 2) * torch.randn_like(mean)

    def own_numpy_noise(mean, logvar, noise):
        return mean + torch.exp(logvar / 2) * torch.from_numpy(np.random.standard_normal(mean.shape))

    for answer in (own_noise, own_numpy_noise):
        message = EXERCISES["01.2"].run(answer).message
        assert message.endswith("it draws random numbers where none are asked for: use the argument `noise`")


def test_random_numbers_where_no_noise_is_given_are_told():
    message = EXERCISES["02.1"].run(lambda mean, logvar: torch.rand(len(mean))).message
    assert message.endswith("it draws random numbers where none are asked for")


# What an attempt cannot do


def test_an_attempt_that_changes_its_inputs_is_told_and_changes_only_copies():
    judge = judge_function(lambda x: x + 1, [probe((2, 3))], [], inputs=("x",))
    exercise = Exercise("00.0", "", "", 1, 1, None, (), (), judge)

    def right(x):
        return x.clone().add_(1)

    def in_place(x):
        return x.add_(1)

    def barely(x):
        result = x + 1
        x += 1e-6
        return result

    def growing(x):
        x.fill_(7.0)
        return x

    for wrong in (in_place, barely):
        assert exercise.run(wrong).message.startswith(
            "the values are right, but it changes its input x: work on a copy"
        )
        assert exercise.run(right).passed
    assert not exercise.run(growing).passed and exercise.run(right).passed


def test_random_states_are_left_as_they_were():
    torch.manual_seed(1), np.random.seed(1), random.seed(1)
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    for exercise in EXERCISES.values():
        exercise.run(exercise.reference)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all() and random.getstate() == before[2]


def test_what_an_attempt_prints_and_warns_is_not_shown(capsys):
    def talkative(mean, logvar, noise):
        print("here"), print("there", file=sys.stderr)
        return mean + torch.exp(logvar / 2) * torch.tensor(noise)  # a UserWarning

    check("01.2", talkative)
    captured = capsys.readouterr()
    assert captured.out.count("\n") == 1 and captured.err == ""


def test_a_check_works_where_gradients_are_off():
    with torch.no_grad():
        assert EXERCISES["01.2"].run(reparameterize).passed
        assert not torch.is_grad_enabled()


# Hints and solutions


def test_hints_come_one_by_one_and_then_point_to_the_solution(capsys):
    for _ in range(5):
        hint("01.2")
    first, second, third, *after = capsys.readouterr().out.splitlines()
    assert first.startswith("01.2, hint 1 of 3: ") and third.startswith("01.2, hint 3 of 3: ")
    assert (
        first != second and after == ['01.2: these were all 3 hints; solution("01.2") shows the finished version'] * 2
    )


@pytest.mark.parametrize(
    ("id", "code", "place"),
    [
        ("01.1", "def split_parameters(parameters):", "gaussian.DiagonalGaussianDistribution.__init__"),
        ("01.2", "def reparameterize(mean, logvar, noise):", "gaussian.DiagonalGaussianDistribution.sample"),
        (
            "01.3",
            "def nll(mean, logvar, sample):",
            "gaussian.DiagonalGaussianDistribution.nll",
        ),
        ("01.4", "class DiagonalGaussian:", "gaussian.DiagonalGaussianDistribution"),
        ("02.4", "def kl_vae_loss(", "losses.vae_loss"),
    ],
)
def test_a_solution_is_what_was_asked_for_and_says_where_the_package_has_it(capsys, id, code, place):
    solution(id)
    out = capsys.readouterr().out
    assert out.startswith(code) and out.endswith(f"\n\n# In the package: klvae_edu.{place}\n")


@pytest.mark.parametrize("id", EXERCISES)
def test_a_solution_pasted_into_a_notebook_passes(capsys, id):
    solution(id)
    notebook = EXERCISES[id].notebook
    earlier = {e.reference.__name__: e.reference for e in EXERCISES.values() if e.notebook == notebook and e.id < id}
    names = {**imported(notebook), **earlier}
    exec(capsys.readouterr().out, names)
    assert EXERCISES[id].run(names[EXERCISES[id].reference.__name__]).passed


def test_in_a_notebook_a_solution_is_markdown_without_addresses():
    code = (
        "from IPython.core.interactiveshell import InteractiveShell; from IPython.display import display\n"
        "from IPython.utils.capture import capture_output; InteractiveShell.instance()\n"
        "from klvae_edu.exercises import solution\n"
        "with capture_output() as captured: solution('01.2')\n"
        "data = captured.outputs[0].data; assert len(captured.outputs) == 1 and not captured.stdout\n"
        "assert data['text/markdown'].startswith('```python\\ndef reparameterize('), data\n"
        "assert '0x' not in data['text/plain'] and 'In the package: ' in data['text/plain']\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# Progress


def test_progress_counts_what_is_passed(capsys):
    check("01.2", reparameterize)
    capsys.readouterr()
    progress()
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith("01.2  The reparameterised sample") and lines[1].endswith("passed")
    assert lines[0].endswith("open") and lines[-1] == f"1 of {len(EXERCISES)} passed"


def test_progress_remembers_earlier_sessions_of_the_folder(capsys, monkeypatch):
    check("01.2", reparameterize)
    monkeypatch.setattr(exercises, "_passed", set())
    check("02.1", lambda *args: EXERCISES["02.1"].reference(*args))
    monkeypatch.setattr(exercises, "_passed", set())
    capsys.readouterr()
    progress()
    assert capsys.readouterr().out.splitlines()[-1] == f"2 of {len(EXERCISES)} passed"


@pytest.mark.parametrize("content", ["", "{", "3", '["01.2", 5, "no such"]', "\xff"])
def test_a_spoilt_progress_file_is_never_fatal(capsys, tmp_path, content):
    (tmp_path / ".klvae_progress.json").write_text(content, encoding="latin-1")
    progress()
    check("01.1", EXERCISES["01.1"].reference)
    check("01.2", reparameterize)
    assert "01.2" in json.loads((tmp_path / ".klvae_progress.json").read_text())


def test_a_folder_that_cannot_be_written_is_never_fatal(capsys, tmp_path):
    (tmp_path / ".klvae_progress.json").mkdir()
    assert check("01.2", reparameterize) is reparameterize
    progress()
    assert capsys.readouterr().out.splitlines()[-1].startswith("1 of")


def test_a_run_without_a_reader_leaves_no_file_and_reads_none(capsys, tmp_path, monkeypatch):
    (tmp_path / ".klvae_progress.json").write_text('["01.1"]')
    monkeypatch.setenv("KLVAE_EDU_QUIET", "1")
    check("01.2", reparameterize)
    progress()
    assert capsys.readouterr().out.splitlines()[-1].startswith("1 of")
    assert (tmp_path / ".klvae_progress.json").read_text() == '["01.1"]'
