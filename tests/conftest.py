"""Settings of every test, made before torch is imported: no network, one thread, no progress bars, no windows."""

import os

os.environ |= {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "MPLBACKEND": "Agg",
    "KLVAE_EDU_QUIET": "1",
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
}
os.environ.pop("KLVAE_EDU_STRICT", None)
