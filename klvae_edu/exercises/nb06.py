"""The exercises of notebook 06."""

from __future__ import annotations

from klvae_edu.exercises.framework import Exercise

NOTEBOOK = "06_reconstruction_losses"

EXERCISES: tuple[Exercise, ...] = ()
