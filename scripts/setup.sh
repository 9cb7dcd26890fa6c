#!/usr/bin/env bash
# Set-up on a bare machine: a virtual environment with torch, fairseq and this plugin (editable). Needs no root.
set -euo pipefail

usage() {
  cat <<'HELP'
usage: scripts/setup.sh

Creates .venv in the checkout and installs everything in it; returns at once if this is already done.
  KD_VENV   another path for the environment (relative to the checkout). If it already has torch, that version is kept.
  PYTHON    the interpreter to create it with (default: the first of python3.11, python3 that runs; 3.8 or newer)
  KD_TORCH  the torch to install, e.g. "torch==2.10.0" (default: 2.13.0; below Python 3.10: 1.13.1 with its torchaudio)
HELP
}
case "${1:-}" in
  "") ;;
  -h | --help) usage; exit 0 ;;
  *) usage >&2; exit 2 ;;
esac

cd "$(dirname "${BASH_SOURCE[0]}")/.."
venv=${KD_VENV:-.venv}
case "$venv" in /*) ;; *) venv=$PWD/$venv ;; esac
python=$venv/bin/python
stamp=$venv/kd_plugin_setup.sha256
log=$venv/setup.log

say() { printf 'setup [%3ds] %s\n' "$SECONDS" "$*"; }

die() {
  printf 'setup: %s\n' "$@" >&2
  exit 1
}

# The hash changes with the recipe, the interpreter and the path of the checkout (the plugin is installed editable).
recipe_hash() {
  { cat setup.py scripts/setup.sh; "$python" -VV; printf '%s\n' "$PWD" "${KD_TORCH:-}"; } | hash_of_input
}

hash_of_input() { "$python" -c 'import hashlib, sys; print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest())'; }

if [ -x "$python" ] && [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$(recipe_hash)" ]; then
  say "$venv is ready"
  exit 0
fi

choose_python() {
  local candidate candidates=(python3.11 python3)
  [ -z "${PYTHON:-}" ] || candidates=("$PYTHON")
  for candidate in "${candidates[@]}"; do
    # Run it, because a pyenv shim may exist for a version that it then refuses to run.
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 8))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  return 1
}

# run WHAT COMMAND…: its output goes to the log, whose end is shown if it fails.
run() {
  local what=$1
  shift
  say "$what"
  printf '\n== %s\n' "$what" >>"$log"
  "$@" >>"$log" 2>&1 </dev/null || {
    tail -n 25 "$log" >&2
    die "failed: $what" "the whole log: $log" \
      "fairseq compiles C++: it needs a compiler and Python's headers (Debian and Ubuntu: g++ and python3-dev)"
  }
}

# pip would compile every installed file, one after the other: half of the setup time.
pip_install() { "$python" -m pip install --no-input --no-compile "$@"; }

# Modules that are hardly ever imported: Python compiles those few that are, then.
seldom='tests?|testing|_vendor|pip|setuptools|Cython|mypyc?|torchgen|transformers/models|ray/(rllib|serve|tune|llm)'
seldom+='|torch/_inductor|fairseq/examples|sympy/physics|pygments/lexers|sqlalchemy/dialects'
seldom+='|onnxruntime/(transformers|quantization)|numba/cuda|numpy/distutils'

# compile_installed PROCESSES FOLDER…: those for other Python versions may fail.
compile_installed() {
  "$python" -m compileall -q -j "$1" -x "site-packages/(.*/)?($seldom)/" "${@:2}" >/dev/null 2>&1 || true
}

has() { "$python" -c "import $1" 2>/dev/null; }

at_least() { "$python" -c "import sys; sys.exit(sys.version_info < ($1, $2))"; }

if ! { [ -x "$python" ] && has pip; }; then
  base=$(choose_python) || die "no Python 3.8 or newer runs here. Remedy: PYTHON=/path/to/python3.11 scripts/setup.sh"
  # An incomplete environment from an interrupted set-up is recreated; a folder that is not one must not be cleared.
  [ ! -e "$venv" ] || [ -f "$venv/pyvenv.cfg" ] || die "$venv exists and is not a virtual environment: choose another KD_VENV"
  say "creating $venv with $base ($("$base" -V))"
  "$base" -m venv --clear "$venv" || die "$base could not create it (Debian and Ubuntu: install python3-venv)"
fi
: >"$log"

if at_least 3 11; then
  fairseq='fairseq-fixed==0.12.3.1'
  torch=(torch==2.13.0)
  numpy=numpy
  # Build against the installed torch; with isolation, pip would download a second one just to compile.
  isolation=(--no-build-isolation)
  pip='pip>=25' # older ones take three times as long to find out which versions go together
else
  fairseq='fairseq==0.12.2'
  torch=(torch==2.13.0)
  # fairseq requires torchaudio, and torchaudio alone would pull in the newest torch.
  at_least 3 10 || torch=(torch==1.13.1 torchaudio==0.13.1)
  numpy='numpy<1.24'
  isolation=()
  pip='pip<24.1' # newer versions refuse the metadata of its omegaconf 2.0
fi
if [ -n "${KD_TORCH:-}" ]; then
  read -r -a torch <<<"$KD_TORCH"
elif has torch; then
  torch=('torch>=1.13')
fi
has torch || download=' (a large download)'

# seqeval has no wheel, and its build would fetch the newest setuptools_scm, which no longer works as it expects
run "pip, numpy, cython" pip_install "$pip" "$numpy" cython 'setuptools<81' 'setuptools_scm<8' wheel
run "${torch[*]}${download:-}" pip_install "${torch[@]}" "$numpy"
# pip uses one core; another compiles meanwhile what is there already, the larger part
packages=$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
rm -f "$venv/torch.compiled"
{ compile_installed 1 "$packages"/torch "$packages"/sympy; touch "$venv/torch.compiled"; } &
compilation=$!

# From here on nothing may replace them: a dependency that wants another torch causes an error instead of a surprise.
"$python" -m pip freeze | grep -iE '^(torch|torchaudio|numpy)==' >"$venv/constraints.txt"
keep=(-c "$venv/constraints.txt")

if ! has fairseq; then
  say "$fairseq is next. If pip has no wheel yet, it is compiled once: 4 to 5 minutes on two cores"
fi
run "$fairseq" pip_install "${keep[@]}" ${isolation[@]+"${isolation[@]}"} "$fairseq"
{
  until [ -e "$venv/torch.compiled" ] || ! kill -0 "$compilation" 2>/dev/null; do sleep 1; done
  compile_installed 1 "$packages"/*/
} &
compilation=$!
run "kd_plugin, editable, with what its tests, the quickstart and the documentation need" \
  pip_install "${keep[@]}" --no-build-isolation -e '.[fairseq,dev,quickstart,tensorboard,docs]'
say "compiling the installed packages"
wait "$compilation"
compile_installed 0 "$packages"
run "checking the result" "$python" -c 'import fairseq.data.data_utils_fast, kd_plugin, torch; print(torch.__version__)'

recipe_hash >"$stamp.new"
mv "$stamp.new" "$stamp"
say "done: $("$python" -V), torch $(tail -n 1 "$log"), in $venv"
