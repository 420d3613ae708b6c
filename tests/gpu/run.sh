#!/bin/bash
# Check and time everything that needs a CUDA device, within eight minutes; tables and logs go to the folder given.
#
#     tests/gpu/run.sh FOLDER [PYTHON]
#
# PYTHON needs the package's dependencies with a CUDA build of torch, and pytest. Exit code: the number of parts that failed.
set -uo pipefail
cd "$(dirname "$0")/../.." || exit 1
out=$(mkdir -p "$1" && cd "$1" && pwd)
python=${2:-python}
export PYTHONPATH=$PWD
failed=0

part() {  # part NAME SECONDS COMMAND...
    local name=$1 seconds=$2 began=$SECONDS
    shift 2
    timeout "$seconds" "$@" > "$out/$name.log" 2>&1
    local code=$?
    [ $code = 0 ] || failed=$((failed + 1))
    echo "$name,$code,$((SECONDS - began))" | tee -a "$out/summary.csv"
}

echo "part,exit_code,seconds" > "$out/summary.csv"
part driver 30 nvidia-smi
part torch 60 "$python" -m torch.utils.collect_env
part tests 150 "$python" -m pytest -q -m gpu --durations=10 tests
part engine 120 "$python" tests/benchmarks/engine.py --device cuda --json "$out/engine.json"
part whole_brain 120 "$python" tests/benchmarks/whole_brain.py --skip-mrtrix --json "$out/whole_brain.json"
part training 60 "$python" tests/gpu/training_step.py
exit $failed
