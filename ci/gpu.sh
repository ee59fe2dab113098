#!/usr/bin/env bash
# The gpu lane, on a self-hosted runner: the tests marked gpu. What it leaves, gpu.xml, is the lane's word for the gate:
# kat gate … --lane gpu=gpu.xml. Without a GPU every test is skipped, and a lane in which no test ran does not count.
set -euo pipefail
cd "$(dirname "$0")/.."
export TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1
python=${PYTHON:-.venv/bin/python}
code=0
"$python" -m pytest -m gpu --junitxml="${GPU_JUNIT:-gpu.xml}" || code=$?
if [ "$code" -eq 5 ]; then echo "gpu lane: no test is marked gpu"; exit 0; fi
exit "$code"
