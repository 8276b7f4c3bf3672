"""Training: `config` describes a run, `trainer` contains the loop, `steps` contains the step of each network.

    from klvae_edu.training.config import TrainingConfig
    from klvae_edu.training.trainer import train

Nothing is imported here, so that the command line shows its options without loading PyTorch.
"""
