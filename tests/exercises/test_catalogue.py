"""What holds for every exercise."""

from __future__ import annotations

import pytest

from klvae_edu.exercises import EXERCISES, nb01, nb02

MISTAKES = {
    "01.1": nb01.SPLIT_MISTAKES,
    "01.2": nb01.SAMPLE_MISTAKES,
    "01.3": nb01.NLL_MISTAKES,
    "02.1": nb02.KL_MISTAKES,
    "02.2": nb02.BETWEEN_MISTAKES,
    "02.3": nb02.MONTE_CARLO_MISTAKES,
    "02.4": nb02.LOSS_MISTAKES,
}


def test_the_catalogue_is_in_order_and_complete():
    assert list(EXERCISES) == ["01.1", "01.2", "01.3", "01.4", "02.1", "02.2", "02.3", "02.4"]


@pytest.mark.parametrize("exercise", EXERCISES.values(), ids=lambda e: e.id)
def test_every_entry_is_filled(exercise):
    assert exercise.notebook.startswith(exercise.id[:3].replace(".", "_"))
    assert 1 <= exercise.difficulty <= 5 and exercise.minutes > 0 and len(exercise.title) <= 45
    assert len(exercise.hints) >= 2 and len(set(exercise.hints)) == len(exercise.hints)
    assert exercise.shown


@pytest.mark.parametrize("exercise", EXERCISES.values(), ids=lambda e: e.id)
def test_the_finished_version_passes(exercise):
    assert exercise.run(exercise.reference).passed


@pytest.mark.parametrize("id", MISTAKES)
def test_the_probes_tell_every_known_mistake_from_the_truth_and_from_the_others(id):
    for message, code in MISTAKES[id]:
        assert EXERCISES[id].run(code).message == message
        assert "\n" not in message
