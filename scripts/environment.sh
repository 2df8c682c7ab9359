# Sourced by the scripts beside it: makes or renews .venv with `prepare`. POSIX sh.
# Expects ROOT, the repository's folder; sets PYTHON, the environment's interpreter.

say() { printf '%s\n' "$*" >&2; }

# The newest Python that qexp runs on, or nothing.
find_python() {
    for name in "${QEXP_PYTHON:-}" python3 python3.14 python3.13 python3.12 python3.11 python3.10 python; do
        if [ -n "$name" ] && command -v "$name" >/dev/null 2>&1 &&
            "$name" -c 'import sys; sys.exit(sys.version_info < (3, 10))' >/dev/null 2>&1; then
            command -v "$name"
            return 0
        fi
    done
    return 1
}

# What the environment was made from; a difference makes it anew.
fingerprint() {
    "$1" - "$2" "$ROOT/pyproject.toml" "$ROOT/scripts/constraints.txt" <<'PYTHON'
import hashlib, pathlib, sys

digest = hashlib.sha256(repr((sys.version, sys.argv[1], sys.argv[2])).encode())
for name in sys.argv[2:]:
    digest.update(pathlib.Path(name).read_bytes())
print(digest.hexdigest())
PYTHON
}

# install_into BASE EXTRAS: a fresh environment, and qexp in it as it stands in the checkout.
install_into() {
    target="$ROOT$2"
    rm -rf "$VENV"
    if command -v uv >/dev/null 2>&1; then
        uv venv --quiet --python "$1" "$VENV" &&
            uv pip install --quiet --python "$VENV/bin/python" -c "$ROOT/scripts/constraints.txt" -e "$target"
    else
        "$1" -m venv "$VENV" || {
            say "qexp: $1 cannot make a virtual environment (on Debian and Ubuntu: apt install python3-venv)."
            return 1
        }
        "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check \
            -c "$ROOT/scripts/constraints.txt" -e "$target"
    fi
}

# prepare EXTRAS: "" or "[test]". An environment with the tests serves both scripts.
prepare() {
    VENV="$ROOT/.venv"
    PYTHON="$VENV/bin/python"
    base=$(find_python) || {
        say "qexp needs Python 3.10 or newer; found none on PATH. Install one, or name it: QEXP_PYTHON=/path/to/python3"
        exit 2
    }
    exec 9<"$ROOT/pyproject.toml" # the lock's file: any that is always there
    if command -v flock >/dev/null 2>&1 && ! flock -n 9; then
        say "Waiting for another qexp that is setting up..."
        flock 9
    fi
    with_tests=$(fingerprint "$base" "[test]")
    wanted=$(fingerprint "$base" "$1")
    found=$(cat "$VENV/.complete" 2>/dev/null || true)
    if [ "$found" != "$wanted" ] && [ "$found" != "$with_tests" ] || [ ! -x "$PYTHON" ]; then
        say "Setting up (about a minute)..."
        install_into "$base" "$1" || {
            say "qexp: setting up failed; the lines above say why. Nothing else was changed; run the command again."
            exit 2
        }
        printf '%s\n' "$wanted" >"$VENV/.complete" # last: a set-up that was cut short is noticed
    fi
    exec 9<&-
}
