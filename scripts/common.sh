# shellcheck shell=sh
# What install.sh, the demo and tests/run share: messages, packages, cargo. POSIX sh, to be sourced
# with the repository as working directory.

# Administration tools are outside the PATH of an ordinary login, rustup's outside that of root.
PATH=$PATH:/usr/sbin:/sbin:${HOME:-/root}/.cargo/bin
export PATH

# paint COLOUR TEXT: a line, in colour on a terminal.
paint() {
    if [ -t 1 ]; then printf '\033[%sm%s\033[0m\n' "$1" "$2"; else printf '%s\n' "$2"; fi
}

# step TEXT: announces what is done next. The count goes on in a program that is called.
step() {
    STEP=$((${STEP:-0} + 1))
    export STEP
    paint 1 "[$STEP${STEPS:+/$STEPS}] $1"
}

# die WHAT WAY_OUT...: a line that says what is wrong, and lines that say what to do.
die() {
    paint 31 "error: $1" >&2
    shift
    [ $# -eq 0 ] || printf '       %s\n' "$@" >&2
    exit 1
}

is_root() {
    [ "$(id -u)" -eq 0 ]
}

# missing_packages COMMAND=PACKAGE...: the Debian packages of those commands that are not there.
# A command with a slash is a file.
missing_packages() {
    for pair in "$@"; do
        command -v "${pair%%=*}" >/dev/null || printf '%s\n' "${pair#*=}"
    done | sort -u
}

# install_packages COMMAND=PACKAGE...: installs what missing_packages tells.
install_packages() {
    packages=$(missing_packages "$@" | tr '\n' ' ')
    [ -n "$packages" ] || return 0
    command -v apt-get >/dev/null || die "not installed: $packages" \
        "These are the names on Debian and Ubuntu; install what your distribution calls them."
    is_root || die "not installed: $packages" "Run: sudo apt-get install $packages"
    printf 'installing %s\n' "$packages"
    apt "update" || die "apt-get update failed" "Needed from there: $packages"
    # shellcheck disable=SC2086 # one word per package
    apt install --no-install-recommends $packages ||
        die "apt-get could not install $packages" "Install by hand what it names above."
}

# apt ARGUMENTS...: apt-get that asks nothing, waits for others, and speaks up on failure only.
apt() {
    log=$(mktemp)
    status=0
    DEBIAN_FRONTEND=noninteractive apt-get -q -y -o DPkg::Lock::Timeout=120 "$@" >"$log" 2>&1 || status=$?
    [ "$status" -eq 0 ] || tail -n 20 "$log" >&2
    rm -f "$log"
    return "$status"
}

# Version of a package that apt would install; empty if none.
apt_candidate() {
    LC_ALL=C apt-cache policy "$1" 2>/dev/null |
        sed -n 's/^ *Candidate: *\([0-9].*\)$/\1/p'
}

# at_least VERSION MINIMUM: compares the first two numbers.
at_least() {
    a_major=${1%%.*} a_rest=${1#*.}
    b_major=${2%%.*} b_rest=${2#*.}
    a_minor=${a_rest%%[!0-9]*} b_minor=${b_rest%%[!0-9]*}
    [ "$a_major" -gt "$b_major" ] || { [ "$a_major" -eq "$b_major" ] && [ "$a_minor" -ge "$b_minor" ]; }
}

# as_owner COMMAND...: under sudo, as the user who called it, if the checkout is theirs: their
# toolchain is the one to use, and no file of root's is left in their target directory.
as_owner() {
    if is_root && [ -n "${SUDO_USER:-}" ] && [ "$SUDO_USER" != root ] &&
        [ "$(stat -c %u .)" = "${SUDO_UID:-}" ]; then
        owner_home=$(getent passwd "$SUDO_USER" | cut -d: -f6)
        runuser -u "$SUDO_USER" -- env HOME="$owner_home" PATH="$owner_home/.cargo/bin:$PATH" "$@"
    else
        "$@"
    fi
}

# The version of the crate, and of everything that is made of it.
crate_version() {
    sed -n '/^\[package\]$/,/^\[/ s/^version = "\(.*\)"$/\1/p' Cargo.toml
}

# The oldest Rust that builds this.
wanted_rust() {
    sed -n 's/^rust-version = "\(.*\)"$/\1/p' Cargo.toml
}

# Succeeds if there is a cargo that is new enough; tells its version.
cargo_version() {
    version=$(as_owner cargo --version 2>/dev/null) || return 1
    version=${version#cargo }
    printf '%s\n' "${version%% *}"
    at_least "$version" "$(wanted_rust)"
}

# Sees to a cargo that is new enough.
need_cargo() {
    found=$(cargo_version) && return 0
    wanted=$(wanted_rust)
    if [ -n "$found" ]; then what="cargo $found is too old, $wanted is needed"; else what="there is no cargo"; fi
    if is_root && command -v apt-get >/dev/null; then
        [ -n "$(apt_candidate rustup)$(apt_candidate rustc)" ] || apt update || true
        candidate=$(apt_candidate rustc)
        if [ -n "$(apt_candidate rustup)" ] || command -v rustup >/dev/null; then
            printf '%s: installing Rust with rustup\n' "$what"
            install_packages rustup=rustup
            as_owner rustup toolchain install stable --profile minimal
            as_owner rustup default stable
        elif [ -n "$candidate" ] && at_least "$candidate" "$wanted"; then
            printf '%s: installing the packages cargo and rustc\n' "$what"
            apt install --no-install-recommends cargo rustc || true
        fi
        cargo_version >/dev/null && return 0
    fi
    die "$what" \
        "Install Rust $wanted or newer with rustup, see https://rustup.rs, and run this again" \
        "(as the same user, also with sudo)."
}
