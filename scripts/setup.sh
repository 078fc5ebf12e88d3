#!/usr/bin/env bash
# Set-up shared by a developer's machine, CI and the images of docker/: system libraries, an environment, the package.
#   scripts/setup.sh                              .venv of this checkout: editable, every extra, what the tests need.
#                                                 When nothing it depends on has changed, it returns at once.
#   scripts/setup.sh --venv DIR [--extras LIST]   an environment elsewhere, which needs the checkout no more: flowpolicy
#                                                 lies in it as a wheel, with these extras (default: all)
#   scripts/setup.sh --venv DIR --runtime [PACKAGE ...]
#                                                 no more than an exported bundle needs: numpy, onnxruntime and the wheel,
#                                                 no torch; and these packages beside them (numba makes clouds)
#   PYTHON=/path/to/python3.12   interpreter to build it from (default: the first of python3, python3.12, python3.11
#                                that will do)
set -euo pipefail
here=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")/.."
root=$(pwd -P)

# One line each: what must be there, the Debian/Ubuntu package that brings it, why.
# A name ending in .so.N is looked up in the linker's cache; python:M is a module of the chosen interpreter.
python_only="
python:ensurepip  python3-venv   pip inside the environment (Debian splits it from python3)
"
required="$python_only
libGL.so.1        libgl1         OpenCV, which SAPIEN imports: no ManiSkill without it
libgthread-2.0.so.0 libglib2.0-0 OpenCV, the same
libX11.so.6       libx11-6       SAPIEN links to it, with or without a display
"
optional="
libEGL.so.1       libegl1        MuJoCo draws through it without a display: clouds, pictures and videos of Meta-World
libEGL_mesa.so.0  libegl-mesa0   the same, on a machine without a GPU
"
spare="
libOSMesa.so.8    libosmesa6     MuJoCo's second choice, which a test draws with; newer distributions have none
"
mesa_vulkan=24.3 # SAPIEN needs a Vulkan device with the features of this Mesa: clouds, pictures, videos of ManiSkill

say() { printf 'setup: %s\n' "$*"; }
die() { printf 'setup: %s\n' "$*" >&2; exit 1; }

fingerprint() { # changes when the recipe or the place of the checkout does (.venv holds absolute paths)
    { cat pyproject.toml scripts/constraints.txt scripts/setup.sh; printf '%s' "$root"; } | sha256sum | cut -d' ' -f1
}

usage() { die "wanted [--venv DIR [--extras LIST | --runtime [PACKAGE ...]]], got $1"; }

parse() { # sets venv (DIR's absolute path), extras, runtime, packages
    local said="$*"
    while (($#)); do
        case $1:${2:-} in
            --venv:?*) venv=$(cd "$here" && realpath -m -- "$2") ;;
            --extras:?*) extras=$2 ;;
            --runtime:*)
                runtime=yes packages=("${@:2}")
                break
                ;;
            *) usage "$said" ;;
        esac
        shift 2
    done
    if [[ $venv == "$root/.venv" ]]; then
        [[ -z $extras$runtime ]] || usage "$said"
        extras=all,dev
        return
    fi
    [[ -z $extras || -z $runtime ]] || usage "$said"
    extras=${extras:-all}
    [[ ! -e $venv || -f $venv/pyvenv.cfg ]] || die "$venv is there already and no environment; choose another folder"
}

fits() { # 3.13 and later: ManiSkill 3.0.1's motion planner (mplib 0.1.1) and numpy 1.26 have no wheels for them
    "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null
}

find_python() {
    local candidate seen=""
    for candidate in ${PYTHON:-python3 python3.12 python3.11}; do
        command -v "$candidate" >/dev/null || continue
        if fits "$candidate"; then
            command -v "$candidate"
            return
        fi
        seen+="${seen:+, }$candidate = $("$candidate" -c 'import platform; print(platform.python_version())' 2>/dev/null)"
    done
    die "wanted Python 3.11 or 3.12, got ${seen:-none}; install one (Debian 12 and Ubuntu 24.04 bring it as python3)" \
        "and set PYTHON=/path/to/it"
}

usable() { # the environment is whole and made for this place: its scripts hold absolute paths
    fits "$venv/bin/python" && "$venv/bin/python" -m pip --version >/dev/null 2>&1 &&
        grep -qF "$venv" "$venv/bin/activate"
}

missing() { # $1: a table as above -> the packages of its lines whose first word is not there
    local what package libraries
    libraries=$(PATH=$PATH:/sbin:/usr/sbin ldconfig -p)
    while read -r what package _; do
        case $what in
            "") ;;
            python:*) "$python" -c "import ${what#python:}" 2>/dev/null || printf '%s ' "$package" ;;
            *) [[ $libraries == *"$what "* ]] || printf '%s ' "$package" ;;
        esac
    done <<<"$1"
}

run() { # run a command into the log; on failure show the log's end
    "$@" >>"$log" 2>&1 || { tail -n 25 "$log" >&2; die "failed: $* (whole log: $log)"; }
}

may_install() { [[ $(id -u) == 0 ]] && command -v apt-get >/dev/null; }

install_system_packages() {
    local needed wished package
    if [[ -n $runtime ]]; then
        required=$python_only optional="" spare=""
    fi
    needed=$(missing "$required")
    wished=$(missing "$optional")
    ! may_install || wished+=$(missing "$spare") # nobody need be asked for it
    [[ -n $needed$wished ]] || return 0
    if may_install; then
        say "installing system packages: $needed$wished"
        export DEBIAN_FRONTEND=noninteractive
        apt-get update >>"$log" 2>&1 || say "apt-get update reports errors (see $log); going on"
        # shellcheck disable=SC2086  # a list of words
        [[ -z $needed ]] || run apt-get install -y --no-install-recommends $needed
        for package in $wished; do # one by one: a name that a distribution lacks must not take the others with it
            apt-get install -y --no-install-recommends "$package" >>"$log" 2>&1 ||
                say "$package could not be installed (log: $log); going on without it"
        done
        return
    fi
    say "system packages are missing; run this line once (names for Debian and Ubuntu):"
    printf '    sudo apt-get update && sudo apt-get install -y --no-install-recommends %s\n' "$needed${wished% }"
    [[ -z $needed ]] || die "cannot go on without ${needed% }"
    say "going on without them"
}

vulkan_draws() { # a GPU's driver, or a Mesa that is new enough
    local installed
    if compgen -G "/etc/vulkan/icd.d/nvidia*.json" || compgen -G "/usr/share/vulkan/icd.d/nvidia*.json"; then
        return
    fi >/dev/null
    installed=$(dpkg-query -W -f '${db:Status-Abbrev}${Version}' mesa-vulkan-drivers 2>/dev/null) || return 1
    [[ $installed == ii* ]] && dpkg --compare-versions "${installed#ii }" ge $mesa_vulkan
}

offered_mesa_fits() { # $1: suite to look in, empty for the default one
    local offer
    offer=$(apt-get install -s --no-install-recommends ${1:+-t "$1"} mesa-vulkan-drivers 2>/dev/null |
        sed -n 's/^Inst mesa-vulkan-drivers .*(\([^ ]*\) .*/\1/p')
    [[ -n $offer ]] && dpkg --compare-versions "$offer" ge $mesa_vulkan
}

add_backports() { # only called when it is not there; to the sources that are there already, so that mirrors and proxies stay what they are
    local file
    for file in $(grep -lrsE '^(Suites:|deb ).*bookworm( |$)' /etc/apt/sources.list /etc/apt/sources.list.d); do
        case $file in
            *.sources) sed -i -E 's/^(Suites:.*\<bookworm)( |$)/\1 bookworm-backports\2/' "$file" ;;
            *.list) sed -i -E '/^deb .* bookworm /{p;s/ bookworm / bookworm-backports /}' "$file" ;;
        esac
    done
    apt-get update >>"$log" 2>&1 || true
}

install_software_vulkan() { # never ends the set-up: states need none of it
    local line="mesa-vulkan-drivers libvulkan1" suite=""
    command -v dpkg-query >/dev/null && ! vulkan_draws || return 0
    [[ $(. /etc/os-release && echo "${VERSION_CODENAME:-}") != bookworm ]] || suite=bookworm-backports
    if may_install; then
        [[ -z $suite ]] || offered_mesa_fits $suite || add_backports
        if offered_mesa_fits $suite; then
            say "installing Mesa >= $mesa_vulkan, which draws ManiSkill on the CPU: $line"
            # shellcheck disable=SC2086  # a list of words
            DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends ${suite:+-t $suite} $line \
                >>"$log" 2>&1 && return
        fi
        say "no Mesa >= $mesa_vulkan could be installed (log: $log)"
    else
        say "clouds and pictures of ManiSkill need Mesa >= $mesa_vulkan or a GPU's Vulkan driver; run this line once:"
        printf '    sudo apt-get install -y --no-install-recommends %s%s\n' "${suite:+-t $suite }" "$line${suite:+ # from the suite $suite; add it to the apt sources first}"
    fi
    say "going on without pictures of ManiSkill"
}

install() { # what was asked for, into the environment
    local pip=("$venv/bin/python" -m pip install) versions=(--constraint scripts/constraints.txt)
    if [[ -n $runtime ]]; then
        run "${pip[@]}" numpy onnxruntime "${packages[@]}" "${versions[@]}"
        run "${pip[@]}" --no-deps .
    elif [[ $venv == "$root/.venv" ]]; then
        run "${pip[@]}" --editable ".[$extras]" "${versions[@]}"
    else
        run "${pip[@]}" ".[$extras]" "${versions[@]}"
    fi
}

venv=$root/.venv extras="" runtime="" packages=()
parse "$@"
stamp=$root/.venv/setup-stamp
if [[ $venv == "$root/.venv" && -f $stamp && $(<"$stamp") == "$(fingerprint)" ]] && "$venv/bin/python" -c "" 2>/dev/null
then
    exit 0
fi

began=$SECONDS
python=$(find_python)
usable || rm -rf "$venv"
mkdir -p "$venv"
log=$venv/setup.log
: >"$log"
[[ $venv != "$root/.venv" ]] || rm -f "$stamp"
install_system_packages
[[ -n $runtime ]] || install_software_vulkan
[[ -x $venv/bin/python ]] || run "$python" -m venv "$venv"
say "installing Python packages into ${venv#"$root/"} with $python (some minutes the first time; log: $log)"
install
[[ $venv != "$root/.venv" ]] || fingerprint >"$stamp"
say "done in $((SECONDS - began)) s"
