"""Training: `config` decides a run, `steps` has one step of it, `trainer` the loop, `state` what it keeps on disk.

    from klvae_edu.training.config import TrainingConfig
    from klvae_edu.training.trainer import train

Nothing is imported here, so that the command line can show its options without loading PyTorch.
"""
