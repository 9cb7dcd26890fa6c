#!/usr/bin/env bash
# The same tests on the oldest supported versions: Python 3.8 to 3.10 (the first that runs, or PYTHON) and the official
# fairseq 0.12.2. Only scripts/test.sh checks lint and types.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
candidates=(python3.8 python3.9 python3.10)
[ -z "${PYTHON:-}" ] || candidates=("$PYTHON")
for candidate in "${candidates[@]}"; do
  # Run it, because a pyenv shim may exist for a version that it then refuses to run.
  if "$candidate" -c "import sys; sys.exit(sys.version_info >= (3, 11))" 2>/dev/null; then
    export PYTHON="$candidate" KD_VENV="${KD_VENV:-.venv-legacy}"
    exec bash scripts/test.sh --no-lint "$@"
  fi
done
echo "scripts/test-legacy.sh: no Python below 3.11 runs here. Remedy: PYTHON=/path/to/python3.8 scripts/test-legacy.sh" >&2
exit 1
