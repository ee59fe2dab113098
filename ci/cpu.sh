#!/usr/bin/env bash
# The CPU lane: lint, types and the default tests, in the environment that `make test` builds. Only here the browser that
# the report's page is tested in is installed where it is missing; without one, those tests are skipped with a word.
set -euo pipefail
cd "$(dirname "$0")/.."
export OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1
if ! command -v chromedriver >/dev/null && command -v apt-get >/dev/null && [ "$(id -u)" = 0 ]; then
    apt-get update -q >/dev/null && apt-get install -y -q --no-install-recommends chromium chromium-driver >/dev/null ||
        echo "ci/cpu.sh: no browser could be installed; the page's browser tests will be skipped"
fi
make test
