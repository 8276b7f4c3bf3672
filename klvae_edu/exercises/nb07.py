"""The exercises of notebook 07."""

from __future__ import annotations

from klvae_edu.exercises.framework import Exercise

NOTEBOOK = "07_patchgan"

EXERCISES: tuple[Exercise, ...] = ()
