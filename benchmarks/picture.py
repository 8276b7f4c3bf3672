"""Draw all results as one picture. Run: python -m benchmarks.picture

It reads the JSON files in this folder, which the other benchmarks write. `make bench` runs those first.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from klvae_edu.plots import PALETTE, figure, render

HERE = Path(__file__).parent
RESULTS = ("inference", "train_step", "activations", "tiled_decode", "explorer", "import_time")
OURS, OTHER = PALETTE[0], PALETTE[1]


def spread(axis: Any, rows: Mapping[str, Sequence[float]], title: str, label: str) -> None:
    """Draw a bar for each ratio, a line from its minimum to its maximum, and the peer as a line at 1."""
    places = range(len(rows))[::-1]
    middle = [row[0] for row in rows.values()]
    ends = [[value - low for value, low, _ in rows.values()], [high - value for value, _, high in rows.values()]]
    colours = [OURS if name.startswith("ours") else OTHER for name in rows]
    axis.barh(places, middle, xerr=ends, color=colours, height=0.6, ecolor="black", capsize=2)
    axis.axvline(1, color="black", linewidth=1, linestyle="--")
    axis.set_yticks(places, [name.replace(", ", ",\n", 1) for name in rows], fontsize=8)
    axis.set(title=title, xlabel=label, xlim=(0, 1.2 * max(high for _, _, high in rows.values())))
    for place, value, high in zip(places, middle, (row[2] for row in rows.values()), strict=True):
        axis.annotate(f"{value:.2f}", (high, place), (6, 0), textcoords="offset points", va="center")


def bars(axis: Any, groups: Mapping[str, Mapping[str, float]], title: str, label: str) -> None:
    """Draw grouped bars: for each name a bar of every group, which has its own colour and hatching."""
    names = [*next(iter(groups.values()))]
    height = 0.8 / len(groups)
    for number, (group, values) in enumerate(groups.items()):
        places = [len(names) - 1 - place + 0.4 - height * (number + 0.5) for place in range(len(names))]
        axis.barh(places, [values[name] for name in names], height * 0.9, label=group, hatch=("", "//", "..")[number])
        for place, name in zip(places, names, strict=True):
            axis.annotate(f"{values[name]:g}", (values[name], place), (4, 0), textcoords="offset points", va="center")
    axis.set_yticks(range(len(names))[::-1], [name.replace(", ", ",\n", 1) for name in names], fontsize=8)
    axis.set(title=title, xlabel=label, xlim=(0, 1.2 * max(max(values.values()) for values in groups.values())))
    if len(groups) > 1:  # below the axis, where it hides no bar
        axis.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=len(groups))


def inference(axes: Sequence[Any], report: Mapping[str, Any]) -> None:
    """Draw the speed of encoding and of decoding with the first network."""
    name = next(name for name in report if isinstance(report[name], Mapping))
    for axis, half in zip(axes, ("encode", "decode"), strict=True):
        title = f"{half}, {name}, {report['side']} × {report['side']}"
        spread(axis, report[name][half]["speed over diffusers"], title, "times as fast as diffusers in float32")


def train_step(axis: Any, report: Mapping[str, Any]) -> None:
    rows = {
        f"{way}, {name}": report[name]["time over ours"][way]
        for name in report
        if isinstance(report[name], Mapping)
        for way in report[name]["time over ours"]
    }
    spread(axis, rows, "training step with every loss", "time over ours")


def activations(axes: Sequence[Any], report: Mapping[str, Any]) -> None:
    setting = report["training step"].split(", ")
    title = f"activations of a training step\n{setting[0]}, {setting[2]}"
    bars(axes[0], {"": report["MiB of activations"]}, title, "MiB")
    for way, sizes in report["MiB of tiled decoding, output aside"].items():
        optimised = "copy" in way
        axes[1].plot(
            [int(side) for side in sizes],
            [*sizes.values()],
            label=way,
            marker="s" if optimised else "o",
            linestyle="--" if optimised else "-",
        )
    axes[1].set_xscale("log", base=2)
    axes[1].set_xticks([int(side) for side in sizes], [*sizes])
    axes[1].set(title="tiled decoding, bundled model", xlabel="side in pixels", ylabel="MiB, output aside")
    axes[1].set_ylim(0, 2 * max(sizes.values()))
    axes[1].legend(fontsize=8)


def tiled_decode(axis: Any, report: Mapping[str, Any]) -> None:
    sizes = report["peak MiB over the model, output aside"]
    bars(axis, {"": sizes}, "decoding in tiles, sd-v1", "MiB over the model, output aside")


def explorer(axis: Any, report: Mapping[str, Any]) -> None:
    groups = {
        "ours": {name: found["median"] for name, found in report["milliseconds from event to picture"].items()},
        "diffusers and matplotlib": {
            name: found["median"] for name, found in report["milliseconds of the peer"].items()
        },
    }
    bars(axis, groups, "a slider's new picture", "milliseconds")


def import_time(axis: Any, report: Mapping[str, Any]) -> None:
    bars(axis, {"": report["seconds"]}, "import", "seconds")


def notebooks(axis: Any, measured: Mapping[str, Mapping[str, float]]) -> None:
    seconds = {name[:2]: found["seconds"] for name, found in measured.items()}
    axis.bar([*seconds], [*seconds.values()], color=OURS)
    axis.tick_params(axis="x", labelsize=8)
    axis.axhline(60, color="black", linewidth=1, linestyle="--")
    axis.set(title="notebooks, from start to end", xlabel="number", ylabel="seconds", ylim=(0, 65))


def draw(reports: Mapping[str, Mapping[str, Any]], measured: Mapping[str, Mapping[str, float]]) -> bytes:
    """Return the picture as PNG bytes."""
    fig, axes = figure(3, 3, size=(13, 11))
    inference(axes[0, :2], reports["inference"])
    train_step(axes[0, 2], reports["train_step"])
    activations(axes[1, :2], reports["activations"])
    tiled_decode(axes[1, 2], reports["tiled_decode"])
    explorer(axes[2, 0], reports["explorer"])
    import_time(axes[2, 1], reports["import_time"])
    notebooks(axes[2, 2], measured)
    fig.suptitle(reports["inference"]["machine"])
    return render(fig)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=HERE, help="the folder of the JSON files")
    parser.add_argument("--out", type=Path, default=HERE / "results.png")
    options = parser.parse_args(arguments)
    reports = {name: json.loads((options.results / f"{name}.json").read_text()) for name in RESULTS}
    measured = json.loads((HERE.parent / "notebooks" / "source" / "measured.json").read_text())
    options.out.write_bytes(draw(reports, measured))


if __name__ == "__main__":
    main()
