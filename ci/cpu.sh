#!/usr/bin/env bash
# The CPU lane: lint, types and the default tests, in the environment that `make test` builds.
set -euo pipefail
cd "$(dirname "$0")/.."
export OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1
make test
