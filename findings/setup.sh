# What every script here begins with: a temporary folder, removed at the end, and `python_with NAME==VERSION ...`,
# which installs those public packages there and runs the Python on its standard input with them, and without ours.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
export HF_HOME="$folder/hf" HF_HUB_OFFLINE=1 HF_HUB_DISABLE_TELEMETRY=1 DO_NOT_TRACK=1
export OMP_NUM_THREADS=1 CUDA_VISIBLE_DEVICES="" PYTHONWARNINGS=ignore
export TRANSFORMERS_VERBOSITY=error HF_DATASETS_DISABLE_PROGRESS_BARS=1 TQDM_DISABLE=1
unset PYTHONPATH

python_with() {
  local python="${PYTHON:-python3}" new="$folder/venv/bin/python"
  if command -v uv >/dev/null; then
    # uv does not read pip's configuration, which may name a folder of smaller wheels
    UV_FIND_LINKS="${UV_FIND_LINKS:-$("$python" -m pip config get global.find-links 2>/dev/null || true)}"
    [ -z "$UV_FIND_LINKS" ] || export UV_FIND_LINKS
    uv venv --quiet --python "$python" "$folder/venv"
    uv pip install --quiet --python "$new" "$@"
  else
    "$python" -m venv "$folder/venv"
    "$new" -m pip install --quiet --disable-pip-version-check "$@"
  fi
  cd "$folder"
  "$new" -
}
