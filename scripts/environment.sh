# Sourced by the scripts beside it: `prepare` makes or renews .venv. POSIX sh.
# Expects ROOT, the repository's folder; sets PYTHON, the environment's interpreter.

VENV="$ROOT/.venv"
PYTHON="$VENV/bin/python"
LOG="$VENV/setup.log"

say() { printf '%s\n' "$*" >&2; }

# contents EXTRAS: what an environment is made from. Written into it last, so one that was cut short is noticed.
contents() {
    printf 'for %s\nwith %s\nqexp%s\n' "$ROOT" "$base" "$1"
    (cd "$ROOT" && cksum pyproject.toml scripts/constraints.txt)
}

# What .venv was made from: `found`, all of it; `base`, its Python, unless QEXP_PYTHON asks for another.
look() {
    found=$(cat "$VENV/.complete" 2>/dev/null) || found=""
    base=${found#*with }
    base=${base%%
qexp*}
    [ -z "${QEXP_PYTHON:-}" ] || base=$(command -v "$QEXP_PYTHON") || base=$QEXP_PYTHON
}

# ready EXTRAS: an environment with the tests serves both scripts.
ready() {
    look
    [ -x "$PYTHON" ] && { [ "$found" = "$(contents "$1")" ] || [ "$found" = "$(contents "[test]")" ]; }
}

# The Python to use: QEXP_PYTHON, or the first on PATH that is new enough.
find_python() {
    seen=""
    if [ -n "${QEXP_PYTHON:-}" ]; then
        set -- "$QEXP_PYTHON"
    else
        set -- python3 python3.14 python3.13 python3.12 python3.11 python3.10 python
    fi
    for name in "$@"; do
        version=$("$name" -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])' 2>/dev/null) || continue
        if "$name" -c 'import sys; sys.exit(sys.version_info < (3, 10))'; then
            command -v "$name"
            return 0
        fi
        seen="$seen${seen:+, }$name is $version"
    done
    say "qexp needs Python 3.10 or newer; ${seen:-${QEXP_PYTHON:-python3} was not found}." \
        "Install one, or name it: QEXP_PYTHON=/path/to/python3"
    return 1
}

# One set-up at a time in one folder. Python's own lock, because not every system has a flock command;
# the lock is held by descriptor 9, which the shell opened and keeps.
lock() {
    "$1" -c '
import fcntl, sys
try:
    fcntl.flock(9, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    print("Waiting for another qexp that is setting up...", file=sys.stderr)
    fcntl.flock(9, fcntl.LOCK_EX)
except OSError:
    pass  # a file system without locks
'
}

# make_environment PYTHON: a new, empty one.
make_environment() {
    rm -rf "$VENV"
    if command -v uv >/dev/null 2>&1; then
        uv venv --quiet --no-project --python "$1" "$VENV"
    else
        "$1" -m venv "$VENV" || {
            say "qexp: $1 cannot make a virtual environment (on Debian and Ubuntu: apt install python3-venv)."
            return 1
        }
    fi
}

# install EXTRAS: qexp as it stands in the checkout. Compiling every module would take half a minute and serve a
# tenth of them, so it is left to the first import, unless imports are told to write nothing.
install() {
    cd "$ROOT" || return 1
    if command -v uv >/dev/null 2>&1; then
        uv pip install --python "$PYTHON" ${PYTHONDONTWRITEBYTECODE:+--compile-bytecode} \
            -c scripts/constraints.txt -e ".$1"
    else
        [ -n "${PYTHONDONTWRITEBYTECODE:-}" ] && compile="--compile" || compile="--no-compile"
        "$PYTHON" -m pip install --disable-pip-version-check --no-input --progress-bar off --use-pep517 \
            "$compile" -c scripts/constraints.txt -e ".$1"
    fi
}

# The installer's last complaints, and what they most likely mean.
explain_failure() {
    complaints=$(grep -Ei "error|cause:" "$LOG" | grep -v "note:" | tail -n 4)
    say "${complaints:-$(tail -n 4 "$LOG")}"
    say "(all of it: $LOG)"
    if grep -q "No space left" "$LOG"; then
        say "qexp: the disk is full; $VENV takes about 6 GB, and the downloads kept in the cache half of that."
    elif grep -Eiq "connect|resolv|unreachable|timed out|dns error" "$LOG"; then
        say "qexp: the package index was not reached; setting up needs the network, once. Behind a proxy: HTTPS_PROXY," \
            "its certificate SSL_CERT_FILE. Another index: PIP_INDEX_URL, and for uv UV_DEFAULT_INDEX."
    fi
}

# set_up PYTHON EXTRAS: over what is there if that was finished and belongs here, else from nothing.
set_up() {
    started=$(date +%s)
    extras=$2
    case $found in *"qexp[test]"*) extras="[test]" ;; esac
    if [ -x "$PYTHON" ] && [ "${found%%
qexp*}" = "for $ROOT
with $base" ] && { [ -x "$VENV/bin/pip" ] || command -v uv >/dev/null 2>&1; }; then
        say "Bringing .venv up to date..."
        mv "$VENV/.complete" "$VENV/.before"
    else
        say "Setting up .venv, once: PyTorch is a download of up to 3 GB, one to several minutes..."
        base=$1
        make_environment "$1" || return 1
    fi
    (install "$extras") >"$LOG" 2>&1 || {
        explain_failure
        [ ! -f "$VENV/.before" ] || mv "$VENV/.before" "$VENV/.complete" # still whole: no reason to start from nothing
        return 1
    }
    rm -f "$VENV/.before"
    contents "$extras" >"$VENV/.complete" || return 1
    say "Set up in $(($(date +%s) - started)) s."
}

# prepare EXTRAS: "" or "[test]".
prepare() {
    ready "$1" && return
    python=$(find_python) || exit 2
    exec 9>>"$ROOT/pyproject.toml" # a file that is always there; nothing is written to it
    lock "$python"
    ready "$1" || set_up "$python" "$1" || {
        say "qexp: setting up failed; the lines above say why. Run the command again when that is mended."
        exit 2
    }
    exec 9>&-
}
