# Sourced by every script of this folder: chooses the platform, the set of requirements and the environment.
#
#   SAW_PLATFORM   cpu or gpu                 (gpu if an NVIDIA driver works, or RAY_ADDRESS names a cluster)
#   SAW_SET        cpu, gpu or released       (the platform's; released: the versions verl was released with, on a CPU)
#   SAW_VENV       a folder, or active: use the Python on PATH         (.venv, .venv-gpu or .venv-released, by the set)
#   SAW_BFCL_VENV  the folder of BFCL's environment                    (.venv-bfcl)
#
# It provides: $repository, $python (the environment's), set_up (makes what is missing), set_up_unless_dry (the same,
# but makes nothing if the script's arguments have --dry-run), fail (prints the reason, and exits). If the script's first
# argument is -h or --help, it prints the script's help, and exits.
repository=$(CDPATH="" cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd) # with an exported CDPATH, cd would print
driver_needed=580 # for CUDA 13, which the wheels of the GPU set are built for
on_cpu="SAW_PLATFORM=cpu rehearses on the CPU (a table: with --rehearse)"
hides_all='^[[:space:]]*(-1|NoDevFiles)?[[:space:]]*(,.*)?$' # of CUDA_VISIBLE_DEVICES: GPUs hidden on purpose
verl_platform=${VERL_PLATFORM:-}
verl_platform=${verl_platform,,}

# Some images set it. Then no process of a training caches its compiled code, and a start takes twice as long.
unset PYTHONDONTWRITEBYTECODE

fail() {
  echo "${0##*/}: $1" >&2
  exit 2
}

# The comment at the head of the script, and the options of the command that it ends with, if an environment exists.
show_help() {
  local command candidate candidates=("$repository"/.venv{,-gpu,-released}/bin/python)
  sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"
  command=$(sed -n 's/^exec "$python" -m saw \(.*\) "$@"$/\1/p' "$0" | tail -n 1)
  if [ -z "$command" ]; then return; fi
  case ${SAW_VENV:-} in
    active) candidates=("$(command -v python || command -v python3)") ;;
    ?*) candidates=("$SAW_VENV/bin/python") ;;
  esac
  echo
  for candidate in "${candidates[@]}"; do
    # shellcheck disable=SC2086  # a command may have two words
    if [ -x "$candidate" ] && "$candidate" -m saw $command --help 2> /dev/null; then return; fi
  done
  echo "Its options are shown here once there is an environment: bash scripts/setup.sh"
}
case ${1:-} in -h | --help) show_help; exit ;; esac
# A command's own help, as in study.sh lm --help, installs nothing either.
if [ -z "${SAW_VENV:-}" ] && ! compgen -G "$repository/.venv*/bin/python" > /dev/null; then
  for argument; do
    case $argument in -h | --help) show_help; exit ;; esac
  done
fi

set_up() { SAW_SET=${requirements:-} SAW_VENV=$venv bash "$repository/scripts/setup.sh" "$@"; }
set_up_unless_dry() { # $1: options of setup.sh, which may be empty; then the script's arguments
  local option=$1
  shift
  if [[ " $* " == *" --dry-run "* ]]; then option=--check; fi
  set_up ${option:+"$option"}
}

# Expands a ~ that no shell has expanded, as in a Dockerfile's ENV: removing a folder named ~ is dangerous.
absolute() { realpath --canonicalize-missing --no-symlinks "${1/#\~\//${HOME:-\~}/}"; }

# Prints the NVIDIA driver's version, or nothing if there is no GPU. A GPU that can't be queried is an error.
find_driver() {
  local answer version
  if command -v nvidia-smi > /dev/null; then
    answer=$(timeout 60 nvidia-smi --query-gpu=driver_version --format=csv,noheader 2>&1) || true
    # on a separate line: the loader and nvidia-smi may print warnings around it
    version=$(sed -nE 's/^([0-9]+(\.[0-9]+)+)\r?$/\1/p' <<< "$answer" | head -n 1)
    answer=${answer%%$'\n'*}
    [ -n "$version" ] ||
      fail "nvidia-smi prints '$answer' instead of the driver's version; repair the driver, or $on_cpu"
    echo "$version"
  elif compgen -G "/dev/nvidia[0-9]*" > /dev/null; then
    fail "there is a GPU in /dev, but no nvidia-smi to show the driver's version; install it with the driver (in a
container: NVIDIA_DRIVER_CAPABILITIES=compute,utility), or $on_cpu"
  fi
}

# The platform that the variables set, in the same order as saw/machine/accelerator.py; empty if they set none.
told_platform() {
  case ${SAW_PLATFORM:-} in
    cpu | gpu) echo "$SAW_PLATFORM"; return ;;
    ?*) fail "SAW_PLATFORM is $SAW_PLATFORM; expected cpu or gpu" ;;
  esac
  case ${SAW_SET:-}-${verl_platform} in
    cpu-* | released-*) echo cpu ;;
    gpu-*) echo gpu ;;
    *-cpu) echo cpu ;;
    *-?*) echo gpu ;;
    *)
      case ${RAY_ADDRESS:-local} in local) ;; *) echo gpu; return ;; esac
      if [[ ${CUDA_VISIBLE_DEVICES-all} =~ $hides_all ]]; then echo cpu; fi
      ;;
  esac
}

decide_platform() {
  platform=$(told_platform) || exit
  if [ "$platform" = cpu ]; then return; fi
  if [ "$verl_platform" = cpu ]; then
    fail "the platform is gpu, but VERL_PLATFORM is cpu, so verl would train on the CPU; unset it, or $on_cpu"
  fi
  driver=$(find_driver) || exit
  if [ -n "$driver" ] && [ "${driver%%.*}" -lt "$driver_needed" ]; then
    fail "the NVIDIA driver is $driver, but the CUDA 13 wheels need driver $driver_needed or newer;
update the driver, or $on_cpu"
  fi
  if [ -z "$platform" ]; then platform=${driver:+gpu}; fi
  platform=${platform:-cpu}
}

decide_requirements() {
  requirements=${SAW_SET:-$platform}
  case $requirements in
    cpu | gpu | released) ;;
    *) fail "SAW_SET is $requirements; expected cpu, gpu or released" ;;
  esac
  case $requirements-$platform in
    cpu-cpu | released-cpu | gpu-gpu) ;;
    *) fail "SAW_SET is $requirements, which is not for SAW_PLATFORM=$platform; leave one out" ;;
  esac
  # The training uses the same platform, even on a machine with a GPU.
  if [ -n "${SAW_SET:-}" ]; then export SAW_PLATFORM=$platform; fi
}

case ${SAW_VENV:-} in
  active)
    if [ -n "${SAW_SET:-}" ]; then fail "SAW_SET is $SAW_SET, but SAW_VENV=active installs no set; leave one out"; fi
    venv=active
    python=$(command -v python || command -v python3) || fail "SAW_VENV is active, but there is no python on PATH"
    ;;
  none) fail "SAW_VENV is none; expected active, for the Python on PATH, or a folder (./none, if it has that name)" ;;
  *)
    decide_platform
    decide_requirements
    default_venv=$repository/.venv-$requirements
    default_venv=${default_venv%-cpu}
    venv=$(absolute "${SAW_VENV:-$default_venv}")
    python=$venv/bin/python
    ;;
esac
default_bfcl_venv=$repository/.venv-bfcl
SAW_BFCL_VENV=$(absolute "${SAW_BFCL_VENV:-$default_bfcl_venv}")
export SAW_BFCL_VENV
