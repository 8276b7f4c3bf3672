#!/usr/bin/env bash
# safetensors 0.8.0: `save_file(tensors, path)` does not write to `path`. It writes to a hidden file `.tmpXXXXXX` in the
# same folder and renames it at the end. A process that is killed while it saves leaves that file, which may be as large
# as the model, under a random name that nothing deletes later.
#
# Why a good guess is wrong: the documentation does not mention a temporary file, so one expects a truncated `path`; and
# a program that writes under its own temporary name, to rename it, expects to find and delete that name after a crash.
#
# Seen: after SIGKILL during a save of 512 MiB the folder holds one file, `.tmp` and six letters or digits, and no `path`.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet numpy==2.4.6 safetensors==0.8.0
mkdir "$folder/model"
cat > "$folder/save.py" <<'PYTHON'
import sys
import numpy
from safetensors.numpy import save_file

save_file({"weight": numpy.zeros(2**27, numpy.float32)}, sys.argv[1])
PYTHON
"$folder/venv/bin/python" "$folder/save.py" "$folder/model/weights.safetensors" &
saving=$!
for _ in $(seq 4000); do
    [ -z "$(ls -A "$folder/model")" ] || break
    sleep 0.005
done
kill -KILL $saving
wait $saving 2>/dev/null || true
left=$(ls -A "$folder/model")
echo "left in the folder: $left"
[[ $left =~ ^\.tmp[A-Za-z0-9]{6}$ ]] || { echo "expected one file .tmpXXXXXX and nothing else: the behaviour changed"; exit 1; }
