"""Run `klvae` as `python -m klvae_edu`, for launchers such as `torchrun -m` and where `klvae` is not on the PATH."""

from klvae_edu.cli import run

if __name__ == "__main__":
    run()
