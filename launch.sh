#!/usr/bin/env bash
# Starts a stage of rgbd_reid_jax where the first argument says.
set -euo pipefail

usage() {
  cat <<'EOF'
Usage: ./launch.sh [OPTIONS] COMMAND [--dry-run] ARGS...

Commands:
  local   run `python -m rgbd_reid_jax.main ARGS...` on this machine

Options:
  --dry-run   print the command, quoted so that a shell can run it, and stop (before COMMAND or right after it)
  -h, --help  print this text

PYTHON names the interpreter (default: python).
EOF
}

fail() {
  printf 'launch.sh: %s\n' "$1" >&2
  exit 2
}

dry_run=false
run() {
  if "$dry_run"; then
    local quoted
    printf -v quoted ' %q' "$@"
    printf '%s\n' "${quoted# }"
  else
    exec "$@"
  fi
}

if (($# == 0)); then
  usage >&2
  exit 2
fi

command=
while (($#)) && [[ -z $command ]]; do
  case $1 in
    --dry-run) dry_run=true ;;
    -h | --help)
      usage
      exit 0
      ;;
    local) command=$1 ;;
    -*) fail "unknown option '$1' (valid options: --dry-run, --help)" ;;
    *) fail "unknown command '$1' (valid commands: local)" ;;
  esac
  shift
done
if [[ ${1:-} == --dry-run ]]; then
  dry_run=true
  shift
fi

case $command in
  local) run "${PYTHON:-python}" -m rgbd_reid_jax.main "$@" ;;
  *) fail "no command given (valid commands: local)" ;;
esac
