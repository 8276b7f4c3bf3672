#!/usr/bin/env bash
# diffusers 0.36.0 with peft 0.17.0 and transformers 5.0.0: `from diffusers import AutoencoderKL` fails, because peft
# imports a cache of language models (HybridCache) that transformers 5 has removed. pip finds nothing wrong with the
# three: peft 0.17 sets no upper bound. Without peft, or with peft 0.18.0, the import works.
#
# Why a good guess is wrong: an autoencoder has no adapter and no language model, and peft is optional. But diffusers
# asks whether peft is installed, and then imports it while it loads the class. What breaks is a package that the
# program does not use, and uninstalling it is the remedy.
#
# Seen: RuntimeError, "Failed to import diffusers.models.autoencoders.autoencoder_kl", then HybridCache; `pip check`
# reports no conflict; after an upgrade to peft 0.18.0 the class is there.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
pip="$folder/venv/bin/pip"
"$pip" install --quiet torch==2.15.0 diffusers==0.36.0 peft==0.17.0 transformers==5.0.0 accelerate==1.15.0
"$pip" check
cat > "$folder/load.py" <<'PYTHON'
try:
    from diffusers import AutoencoderKL

    print(f"imported {AutoencoderKL.__name__}")
except RuntimeError as error:
    print("failed", "HybridCache" in str(error))
PYTHON
before=$("$folder/venv/bin/python" "$folder/load.py" | tail -1)
"$pip" install --quiet peft==0.18.0
after=$("$folder/venv/bin/python" "$folder/load.py" | tail -1)
echo "peft 0.17.0: $before; peft 0.18.0: $after"
test "$before" = "failed True" && test "$after" = "imported AutoencoderKL" || { echo "the behaviour changed"; exit 1; }
