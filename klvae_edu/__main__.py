"""`python -m klvae_edu` is `klvae`, for launchers such as `torchrun -m` and for shells that do not find the script."""

from klvae_edu.cli import run

if __name__ == "__main__":
    run()
