#!/usr/bin/env bash
# The merge gate, as CI runs it and as it runs at home:
#
#   ci/gate.sh main      train the gate's recipe under every seed and keep the runs as main's
#   ci/gate.sh branch    train seed 0; only where its bits are not main's the other seeds too; verify; gate
#
# Everything lies under GATE_HOME (default runs/gate). SEEDS, RECIPE, POLICY and NOISE_OPTIONS (words for kat noise, such
# as "--set sft.steps=20") may be set from outside; VERIFY_LEVEL is the highest level of kat verify. With GPU_JUNIT the
# gpu lane's result is handed over.
set -euo pipefail
cd "$(dirname "$0")/.."
side=${1:?say main or branch}
home=${GATE_HOME:-runs/gate}
seeds=${SEEDS:-5}
recipe=${RECIPE:-tiny}
policy=${POLICY:-ci/gate.toml}
python=${PYTHON:-.venv/bin/python}
read -r -a options <<<"${NOISE_OPTIONS:-}"
export OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1

train() { "$python" -m kat --home "$home/$side" noise "$recipe" --seeds "$1" --out "$home/arms/$side" "${options[@]}"; }

judge() {
  local lanes=()
  if [ -n "${GPU_JUNIT:-}" ]; then lanes=(--lane "gpu=$GPU_JUNIT"); fi
  "$python" -m kat --home "$home/$side" gate "$home/arms/main" "$home/arms/branch" --policy "$policy" \
    --verify "$home/verify.json" --json "$home/gate.json" --junit "$home/gate.xml" "${lanes[@]}" "$@"
}

case "$side" in
  main) train "$seeds" ;;
  branch)
    if [ ! -f "$home/arms/main/noise.json" ]; then
      echo "ci/gate.sh: no runs of main in $home/arms/main; run ci/gate.sh main there first" >&2
      exit 3
    fi
    rm -rf "$home/arms/branch"
    "$python" -m kat verify native --level "${VERIFY_LEVEL:-3}" --json "$home/verify.json" || echo "kat verify: exit $?"
    train 1
    if "$python" - "$home" <<'PY'
import json, pathlib, sys
arms = pathlib.Path(sys.argv[1], "arms")
main, branch = (json.loads((arms / side / "seed-0/results.json").read_text()) for side in ("main", "branch"))
sys.exit(main["model_hash"] != branch["model_hash"])
PY
    then
      echo "seed 0 is bit-identical: no other seed is trained"
    else
      train "$seeds"
    fi
    judge
    ;;
  *) echo "ci/gate.sh: $side is neither main nor branch" >&2; exit 2 ;;
esac
