# Sourced by run.sh and test.sh: one virtual environment, PyTorch first, nothing installed twice.
PYTHON=${PYTHON:-python3}
VENV=${VENV:-.venv}

install_lorabel() {
  local extras=$1 stamp wanted
  stamp=$VENV/.lorabel-installed-${extras//,/-}
  if ! "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    echo "error: Python 3.11 or newer is needed, got $("$PYTHON" --version). Set PYTHON to another interpreter." >&2
    exit 2
  fi
  wanted=$(cat pyproject.toml constraints.txt | cksum)
  if [[ -f $stamp && $(cat "$stamp") == "$wanted" ]]; then return; fi
  [[ -x $VENV/bin/python ]] || "$PYTHON" -m venv "$VENV"
  if ! "$VENV/bin/python" -c 'import torch' 2>/dev/null; then
    echo "Installing PyTorch into $VENV: about 200 MB to download for a CPU build, 2 GB and more where your package index serves one with GPU libraries." >&2
    "$VENV/bin/python" -m pip install --quiet --constraint constraints.txt torch
  fi
  echo "Installing lorabel[$extras] into $VENV (about 200 MB to download)." >&2
  "$VENV/bin/python" -m pip install --quiet --constraint constraints.txt --editable ".[$extras]"
  echo "$wanted" > "$stamp"
}
