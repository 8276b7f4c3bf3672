"""`klvae train` in several processes: `torchrun --nproc-per-node 2 -m klvae_edu.training [RECIPE] --steps 500 …`."""

import sys

from klvae_edu.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
