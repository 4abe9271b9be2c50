"""The programs of the sandbox: they record their arguments, give a plausible answer and exit."""

from __future__ import annotations

import shlex
from pathlib import Path

from skyrl_modal.skyrl.uv_run import OPTIONS_WITH_VALUE

#: Where the sandbox has the programs, and the file that they write to.
STUBS_FOLDER = "/run/skyrl_modal/programs"
CALLS_FILE = "/run/skyrl_modal/calls"

#: Programs that start something. Called in the background they wait for a moment, since the shell may check that they
#: are still running.
STARTING = ("uv", "python", "python3", "torchrun", "accelerate", "deepspeed", "vllm", "ray", "sglang")
#: Programs that change something elsewhere, need a network, or take time.
OTHERS = (
    "uvx", "pip", "pip3", "pipx", "conda", "mamba", "git", "curl", "wget", "nvidia-smi", "rocm-smi", "nvcc", "hf",
    "huggingface-cli", "wandb", "sleep", "docker", "podman", "srun", "sbatch", "squeue", "scontrol", "scancel", "ssh",
    "scp", "rsync", "aws", "gsutil", "gcloud", "az", "kubectl", "apt", "apt-get", "sudo", "npm", "make", "cmake",
    "tmux", "screen", "lsof", "fuser", "pytest", "modal", "systemctl",
)  # fmt: skip

# Each line of the file is "ID KIND TEXT". Lines are short, so that the kernel appends each as a whole.
_STUB = r"""#!/bin/bash
set +eux
name=${0##*/} id=$$-$RANDOM gpus=@GPUS@ gpu_name=@GPU_NAME@ stubs=@STUBS@
put() {
  local LC_ALL=C kind=$1 text=$2
  text=${text//\\/\\\\}; text=${text//$'\n'/\\n}; text=${text//$'\r'/\\r}
  while ((${#text} > 1000)); do
    printf '%s\n' "$id $kind+ ${text:0:1000}" >>@CALLS@ || exit 1
    text=${text:1000}
  done
  printf '%s\n' "$id $kind ${text}" >>@CALLS@ || exit 1
}
[[ /dev/stdin -ef /dev/null ]] && background=1 || background=0
if [[ $name != sleep ]]; then
  put C "$name"; put D "$PWD"; put B "$background"
  for word in "$@"; do put A "$word"; done
  while IFS= read -r -d '' word; do put E "$word"; done </proc/self/environ
  put X ''
fi
value_of() {  # the value of an option in the other arguments
  local option=$1; shift
  while (($#)); do
    case $1 in "$option") printf '%s' "$2"; return;; "$option"=*) printf '%s' "${1#*=}"; return;; esac
    shift
  done
}
run_nested() {  # what uv runs, if it is a shell or a shell script
  local is_run=0
  while (($#)); do
    case " @OPTIONS@ " in *" $1 "*) shift 2; continue;; esac
    case $1 in
      -m|--module) return;;
      --) is_run=1;;
      -*) ;;
      run) if ((is_run)); then return; fi; is_run=1;;
      bash|sh|*/bash|*/sh|*.sh) ((is_run)) && case $1 in *.sh) exec bash "$@";; *) exec "$@";; esac; return;;
      *) return;;
    esac
    shift
  done
}
create_environment() {
  mkdir -p "$1/bin" && : >"$1/bin/activate" && ln -sf "$stubs/python" "$stubs/python3" "$stubs/uv" "$1/bin/"
}
case $name in
  nvidia-smi)
    ((gpus)) || { echo "No devices were found"; exit 6; }
    query=$(value_of --query-gpu "$@"); format=$(value_of --format "$@")
    for ((i = 0; i < gpus; i++)); do
      if [[ $1 == -L || $1 == --list-gpus ]]; then echo "GPU $i: $gpu_name (UUID: GPU-0000000$i)"; continue; fi
      [[ $query ]] || { echo "| $i  $gpu_name |"; continue; }
      [[ $i == 0 && $format != *noheader* ]] && echo "$query"
      unit=" MiB"; [[ $format == *nounits* ]] && unit=
      line=
      for field in ${query//,/ }; do
        case $field in
          index) text=$i;; name|gpu_name) text=$gpu_name;; uuid|gpu_uuid) text=GPU-0000000$i;; count) text=$gpus;;
          memory.total|memory.free) text=81559$unit;; memory.used) text=0$unit;; compute_cap) text=9.0;;
          driver_version) text=570.86.15;; *) text=0;;
        esac
        line+="${line:+, }$text"
      done
      echo "$line"
    done;;
  git)
    [[ $1 == -C ]] && { cd "$2" || exit 128; shift 2; }
    case $1 in
      clone)
        target=${!#}
        case $target in *://*|*@*:*) target=${target##*/}; target=${target%.git};; esac
        mkdir -p "$target";;
      rev-parse)
        case " $* " in
          *" --show-toplevel "*) echo "${SKYRL_REPO_ROOT:-$PWD}";;
          *" --abbrev-ref "*) echo main;;
          *" --short "*) echo 0000000;;
          *) echo 0000000000000000000000000000000000000000;;
        esac;;
    esac;;
  curl)
    target=$(value_of -o "$@")$(value_of --output "$@")
    if [[ $target && $target != - && $target != /dev/null ]]; then : >"$target"; fi
    format=$(value_of -w "$@")$(value_of --write-out "$@")
    if [[ $format ]]; then printf '%b' "${format//'%{http_code}'/200}"
    elif [[ ! $target ]]; then echo '{"status": "ok"}'; fi;;
  wget)
    target=$(value_of -O "$@")
    if [[ $target && $target != - ]]; then : >"$target"; fi;;
  hf|huggingface-cli)
    target=$(value_of --local-dir "$@")
    if [[ $target ]]; then mkdir -p "$target"; echo "$target"; fi;;
  lsof|fuser|squeue) exit 1;;
  sudo)
    while [[ $1 == -* ]]; do shift; done
    (($#)) && exec "$@";;
  uv)
    target=${!#}
    [[ $target == venv || $target == -* ]] && target=.venv
    case $1 in --version|-V) echo "uv 0.9.0";; venv) create_environment "$target";; esac
    run_nested "$@";;
  python|python3)
    case $1 in --version|-V) echo "Python 3.12.0";; esac
    [[ $1 == -m && $2 == venv ]] && create_environment "${!#}";;
  ray) [[ $1 == --version ]] && echo "ray, version 2";;
esac
case " $* " in *device_count*) echo "$gpus";; esac
case " @STARTING@ " in *" $name "*) ((background)) && /usr/bin/sleep 0.2;; esac
exit 0
"""


def create_stubs(folder: Path, *, gpus: int, gpu_name: str) -> None:
    """Create the programs in a folder, which the sandbox has at ``STUBS_FOLDER``.

    Args:
        folder: An empty folder.
        gpus: The number of GPUs that nvidia-smi reports.
        gpu_name: Their name.
    """
    text = _STUB
    for name, value in {
        "GPUS": str(gpus),
        "GPU_NAME": shlex.quote(gpu_name),
        "CALLS": CALLS_FILE,
        "STUBS": STUBS_FOLDER,
        "OPTIONS": " ".join(sorted(OPTIONS_WITH_VALUE)),
        "STARTING": " ".join(STARTING),
    }.items():
        text = text.replace(f"@{name}@", value)
    stub = folder / ".program"
    stub.write_text(text, encoding="utf-8")
    stub.chmod(0o755)
    for name in (*STARTING, *OTHERS):
        (folder / name).symlink_to(stub.name)
