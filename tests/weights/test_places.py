"""Where in a file an autoencoder is: prefixes at any depth, two autoencoders, none."""

from __future__ import annotations

import pytest

from klvae_edu.weights.keys import to_diffusers
from klvae_edu.weights.places import choose_place, count_by_kind, find_places
from tests.parity.compvis import compvis_shapes, compvis_weights

SHAPES = compvis_shapes(ch=32, ch_mult=(1, 2), num_res_blocks=1)
OTHERS = ["model.diffusion_model.input_blocks.0.0.weight", "cond_stage_model.transformer.encoder.weight", "step"]
PREFIXES = [
    "",
    "module.",
    "vae.",
    "model.",
    "first_stage_model.",
    "model.first_stage_model.",
    "module.ema.vae.",
    "autoencoder.module.",
    "encoder.",  # a model whose encoder is a whole autoencoder
]


@pytest.mark.parametrize("prefix", PREFIXES)
def test_the_prefix_is_found_at_any_depth(prefix: str) -> None:
    for names in (SHAPES, to_diffusers(compvis_weights(SHAPES))):
        all_names = [*OTHERS, *(prefix + name for name in names)]
        assert find_places(all_names) == {prefix: len(names)}
        assert choose_place(all_names) == (prefix, None)


@pytest.mark.parametrize("wrapper", ["_orig_mod.", "_fsdp_wrapped_module."])
def test_what_pytorchs_wrappers_add_is_no_prefix(wrapper: str) -> None:
    assert find_places(f"module.{wrapper}{name}" for name in SHAPES) == {"module.": len(SHAPES)}
    assert find_places(name.replace("coder.", f"coder.{wrapper}", 1) for name in SHAPES) == {"": len(SHAPES)}


def test_a_half_beside_a_whole_one_is_not_the_place() -> None:
    half = [f"loss.{name}" for name in SHAPES if name.startswith("encoder.")]
    assert choose_place([*half, *SHAPES]) == ("", None)
    assert find_places(half) == {"loss.": len(half)}


@pytest.mark.parametrize("other", ["ema.", "model_ema.", "ema_model.module.", "averaged.", "shadow."])
def test_of_trained_and_averaged_weights_the_trained_ones_are_taken_unless_asked(other: str) -> None:
    names = [prefix + name for prefix in ("model.", other) for name in SHAPES]
    assert choose_place(names) == ("model.", other)
    assert choose_place(names, ema=True) == (other, "model.")
    assert choose_place(names, prefix=other) == (other, None)
    assert choose_place(names, prefix=other.rstrip(".")) == (other, None)


def test_of_two_others_none_is_taken_and_the_error_says_how_to_choose() -> None:
    names = [prefix + name for prefix in ("", "vae.") for name in SHAPES]
    count = len(SHAPES)
    with pytest.raises(ValueError) as error:
        choose_place(names)
    assert f"more than one autoencoder: {count} tensors bare and {count} tensors under vae; choose" in str(error.value)
    assert "prefix='vae.' in Python, FILE#vae in a command" in str(error.value)
    assert choose_place(names, prefix="") == ("", None)
    with pytest.raises(ValueError, match="no autoencoder under first_stage_model"):
        choose_place(names, prefix="first_stage_model")


def test_none_is_an_error_that_says_what_was_looked_for_and_what_is_there() -> None:
    names = [f"lora_unet_down_blocks_{i}.lora_up.weight" for i in range(9)]
    with pytest.raises(ValueError) as error:
        choose_place(names)
    message = str(error.value)
    for part in ("encoder.conv_in.weight", "first_stage_model.", "vae.", *names[:5], "9 in all"):
        assert part in message
    assert names[5] not in message
    with pytest.raises(ValueError, match="found no tensors"):
        choose_place([])


def test_other_tensors_are_counted_by_their_first_part() -> None:
    names = ["loss.a", "loss.b.c", "global_step", "ema.x"]
    assert count_by_kind(names) == "2 under loss, global_step, 1 under ema"
    assert count_by_kind(f"kind{number}.x" for number in range(12)).endswith(", … (12 kinds)")


def test_a_word_that_only_contains_ema_is_no_average() -> None:
    names = [prefix + name for prefix in ("semantic.", "vae.") for name in SHAPES]
    with pytest.raises(ValueError, match="more than one autoencoder"):
        choose_place(names)
