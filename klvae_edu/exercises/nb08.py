"""The exercises of notebook 08."""

from __future__ import annotations

from klvae_edu.exercises.framework import Exercise

NOTEBOOK = "08_training_loop"

EXERCISES: tuple[Exercise, ...] = ()
