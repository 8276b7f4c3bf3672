"""Two machines, which are namespaces with a `torchrun` each, train one model: in a folder that they share, or not."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import pytest

TIMEOUT = 600  # seconds, on a busy machine
TOOLS = ("ip", "unshare", "nsenter", "mount")

# Both machines take the runs in turn. In "interrupted" the second one is stopped in step 2, as with Ctrl-C.
PROGRAM = """
import json, os, signal, sys
from klvae_edu.cli import main
from klvae_edu.training import trainer

make_step = trainer.generator_step

def stopping(training, images):
    if name == "interrupted" and training.step == 2 and os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGINT)
    return make_step(training, images)

trainer.generator_step = stopping
for name, options in json.loads(sys.argv[1]).items():
    code = main(["train", *sys.argv[2:], *options])
    print(f"{name} ended with {code}", flush=True)
"""


class Outcome(NamedTuple):
    """Texts that the machines printed, on standard output and on standard error, and the folder that they share."""

    printed: list[str]
    errors: list[str]
    shared: Path


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[list[str]]]:
    """Make two machines, joined by a cable: the words that run a command in each. Both have an own folder `private`."""
    if missing := [tool for tool in TOOLS if shutil.which(tool) is None]:
        pytest.skip(f"no namespaces here: {', '.join(missing)} not found")
    private = tmp_path_factory.getbasetemp() / "private"
    private.mkdir()
    script = f"mount -t tmpfs none '{private}' && echo made && read -r _"  # it stays until its input is closed
    pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with ExitStack() as stack:
        ids = []
        for _ in range(2):
            process = stack.enter_context(
                subprocess.Popen(["unshare", "--net", "--mount", "sh", "-c", script], text=True, **pipes)
            )
            if process.stdout.readline() != "made\n":
                pytest.skip(f"no namespaces here: {process.stderr.read().strip()}")
            ids.append(str(process.pid))
        cable = ["ip", "link", "add", "cable", "netns", ids[0], "type", "veth", "peer", "cable", "netns", ids[1]]
        made = subprocess.run(cable, capture_output=True, text=True)
        if made.returncode:
            pytest.skip(f"no network between namespaces here: {made.stderr.strip()}")
        found = [["nsenter", "--target", number, "--net", "--mount"] for number in ids]
        for number, machine in enumerate(found, 1):
            for words in ("address add 10.77.0.{}/24 dev cable", "link set cable up", "link set lo up"):
                subprocess.run([*machine, "ip", *words.format(number).split()], check=True)
        yield found


@pytest.fixture(scope="module")
def outcome(machines: list[list[str]], runs: Any, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """Run the program on both machines to its end."""
    shared = tmp_path_factory.mktemp("shared")
    (shared / "program.py").write_text(PROGRAM)
    names = {"whole": "whole", "interrupted": "parts", "resumed": "parts"}
    options = {name: ["--out", str(shared / folder)] for name, folder in names.items()}
    options["resumed"] += ["--resume", "auto"]
    options["apart"] = ["--out", str(tmp_path_factory.getbasetemp() / "private" / "run")]
    sizes = ["--size", "16", "--batch-size", "8", "--held-out", "2", "--device", "cpu", "--steps", "3"]
    sizes += ["--sample-every", "2"]
    command = [str(shared / "program.py"), json.dumps(options), *sizes, "--data", str(pictures)]
    torchrun = ["-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", "--master-addr=10.77.0.1"]
    processes = [
        subprocess.Popen(
            [*machine, sys.executable, *torchrun, f"--node-rank={rank}", *command],
            env={**os.environ, "GLOO_SOCKET_IFNAME": "cable", "CUDA_VISIBLE_DEVICES": ""},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for rank, machine in enumerate(machines)
    ]
    runs.started += processes
    texts = [process.communicate(timeout=TIMEOUT) for process in processes]
    return Outcome([printed for printed, _ in texts], [errors for _, errors in texts], shared)


def test_with_a_folder_that_both_see_they_train_and_resume_with_the_same_bits(runs: Any, outcome: Outcome) -> None:
    for printed, errors in zip(outcome.printed, outcome.errors, strict=True):
        codes = dict(re.findall(r"^(.*) ended with (\d+)$", printed, re.MULTILINE))
        assert codes == {"whole": "0", "interrupted": "130", "resumed": "0", "apart": "2"}, errors
    assert f"Resumed from {outcome.shared}/parts/checkpoints/step_0000002." in outcome.printed[0]
    assert runs.differences(outcome.shared / "whole", outcome.shared / "parts") == []


def test_a_folder_that_only_one_sees_is_an_error_on_both(outcome: Outcome) -> None:
    for errors in outcome.errors:
        (line,) = [line for line in errors.splitlines() if line.startswith("klvae: ")]
        assert "out: process 1 cannot see the folder of process 0: it must be on a disk that all share" in line
