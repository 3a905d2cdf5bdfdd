# Make the conda environment in .conda or bring it up to date (setup), write down its exact packages (lock).
#
#     make setup        # or: sh scripts/setup_env.sh setup .conda/bin/python .conda/.ready
#
# Safe to call again at any time: an environment that was not finished, or made for another folder, is made again from the start.
set -eu
TASK=$1 PYTHON=$2 READY=$3
ENVIRONMENT=$PWD/.conda
MADE=.conda/.made # holds where: the paths inside an environment do not survive a move

# no questions; and a package that conda-forge has comes from there, whatever other channels this machine adds
export CONDA_ALWAYS_YES=true MAMBA_ALWAYS_YES=true
export CONDA_CHANNEL_PRIORITY=strict MAMBA_CHANNEL_PRIORITY=strict
export PIP_UPGRADE_STRATEGY=only-if-needed # what pip does by itself, and what keeps conda's PyTorch

fail() {
    echo "error: $1." >&2
    exit 1
}

fingerprint() { # of all that says what the environment holds, and where it is
    {
        pwd
        cat environment.yml pyproject.toml
        if [ -f conda-lock.txt ]; then cat conda-lock.txt; fi
    } | cksum
}

find_conda() {
    if [ -n "${CONDA-}" ]; then
        "$CONDA" --version >/dev/null 2>&1 ||
            fail "CONDA must name a mamba, micromamba or conda that runs, got $CONDA. Fix it, or leave CONDA= away"
    else
        for program in mamba micromamba "${MAMBA_EXE-}" conda "${CONDA_EXE-}"; do
            if "$program" --version >/dev/null 2>&1; then
                CONDA=$program
                break
            fi
        done
    fi
    [ -n "${CONDA-}" ] ||
        fail "the environment is made by mamba, micromamba or conda, and none that runs was found. Install Miniforge (https://conda-forge.org/download), or name the one you have: make setup CONDA=/path/to/conda"
    case ${CONDA##*/} in
        micromamba*) kind=micromamba ;;
        mamba*) kind=mamba ;;
        *) kind=conda ;;
    esac
    if [ "$kind" = conda ]; then
        case $("$CONDA" config --show solver 2>/dev/null) in
            *libmamba* | *rattler*) ;;
            *) fail "$("$CONDA" --version) solves with its classic solver, which is too slow for PyTorch's packages; libmamba is wanted. Run 'conda update -n base conda' for 23.10 or newer, or 'conda install -n base conda-libmamba-solver'; then 'conda config --set solver libmamba' and 'make setup'" ;;
        esac
    fi
    info=$("$CONDA" info)
}

cuda_wanted() { # the CUDA that conda-forge builds this PyTorch with; nothing for the CPU build
    case $(sed -n 's/^ *- "cuda-version=\([0-9]*\)".*/\1/p' environment.yml) in
        12) echo 12.9 ;;
        13) echo 13.0 ;;
    esac
}

tell_cuda() { # where conda sees no driver (a login node, CI) it refuses CUDA's packages unless a variable names one
    case $info in *__cuda*) return 0 ;; esac
    if [ -n "$cuda" ] && [ -z "${CONDA_OVERRIDE_CUDA+set}" ]; then
        export CONDA_OVERRIDE_CUDA="$cuda"
        echo "conda sees no GPU here: the environment is made for a machine with CUDA $cuda (CONDA_OVERRIDE_CUDA)."
    fi
}

lock_fits() {
    [ -f conda-lock.txt ] || return 1
    platform=$(echo "$info" | sed -n 's/^ *platform : *\([^ ]*\).*/\1/p')
    if ! grep "/$platform/" conda-lock.txt >/dev/null; then
        echo "conda-lock.txt is not for this platform ($platform) and is not used."
    elif ! grep -x "# environment.yml $(cksum <environment.yml)" conda-lock.txt >/dev/null; then
        echo "conda-lock.txt was written for another environment.yml and is not used; 'make lock' writes it again."
    else
        return 0
    fi
    return 1
}

install() {
    cuda=$(cuda_wanted)
    tell_cuda
    if [ "$(cat $MADE 2>/dev/null)" = "$ENVIRONMENT" ]; then
        verb=install env_verb="env update"
    else
        verb=create env_verb="env create"
        rm -rf .conda
    fi
    if [ "$kind" = micromamba ]; then env_verb=$verb; fi # knows the kind of file by its name
    if lock_fits; then
        printf '\n== %s\n' "Making .conda from conda-lock.txt with $CONDA"
        "$CONDA" $verb --prefix "$ENVIRONMENT" --file conda-lock.txt &&
            "$PYTHON" -m pip install --editable ".[dev]"
    else
        printf '\n== %s\n' "Making .conda from environment.yml with $CONDA"
        # shellcheck disable=SC2086  # two words
        "$CONDA" $env_verb --prefix "$ENVIRONMENT" --file environment.yml
    fi || fail "$kind could not make the environment (its message stands above).${cuda:+ If that names __cuda, the driver of this machine is too old for CUDA ${cuda%.*}: update it, or make the environment for another machine with CONDA_OVERRIDE_CUDA=$cuda.} Fix what it names, then run 'make setup' again"
    echo "$ENVIRONMENT" >$MADE
}

is_up_to_date() {
    [ "$(cat "$READY" 2>/dev/null)" = "$(fingerprint)" ]
}

setup() {
    if is_up_to_date; then
        echo "The environment in .conda is up to date."
    else
        find_conda
        rm -f "$READY"
        install
    fi
    if [ -d etc ]; then # an image is made without
        mkdir -p .conda/etc
        cp -R etc/conda .conda/etc/
    fi
    "$PYTHON" -m runengine doctor --quick || [ $? -eq 2 ] || { # 2: something is unknown
        rm -f "$READY"
        exit 1
    }
    fingerprint >"$READY"
}

list_packages() { # the second is how micromamba and mamba 2 say it; what pip installed is in neither
    echo "# environment.yml $(cksum <environment.yml)"
    "$CONDA" list --prefix "$ENVIRONMENT" --explicit --md5 2>/dev/null ||
        "$CONDA" env export --prefix "$ENVIRONMENT" --explicit
}

lock() {
    is_up_to_date || fail "the environment is not there, or not what environment.yml and pyproject.toml say. Run: make setup lock"
    find_conda
    if list_packages >conda-lock.new && grep -x @EXPLICIT conda-lock.new >/dev/null; then
        mv conda-lock.new conda-lock.txt
        fingerprint >"$READY"
        echo "conda-lock.txt holds the exact conda packages: commit it, and 'make setup' installs these."
    else
        rm -f conda-lock.new
        fail "$kind could not list the packages of .conda (its message stands above). Run 'make clean-env setup', then 'make lock' again"
    fi
}

$TASK
