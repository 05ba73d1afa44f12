# shellcheck shell=sh
# Functions that install.sh, the demo and tests/run share: messages, packages, cargo. POSIX sh, to be
# sourced with the repository as working directory.

# An ordinary user's PATH lacks administration tools, and root's PATH lacks those of rustup.
PATH=$PATH:/usr/sbin:/sbin:${HOME:-/root}/.cargo/bin
export PATH

# paint COLOUR TEXT: prints a line, in colour on a terminal.
paint() {
    if [ -t 1 ]; then printf '\033[%sm%s\033[0m\n' "$1" "$2"; else printf '%s\n' "$2"; fi
}

# step TEXT: announces the next step. A called program goes on with the count.
step() {
    STEP=$((${STEP:-0} + 1))
    export STEP
    paint 1 "[$STEP${STEPS:+/$STEPS}] $1"
}

# die FAULT REMEDY...: prints the fault, then the remedies one per line, and exits with code 1.
die() {
    paint 31 "error: $1" >&2
    shift
    [ $# -eq 0 ] || printf '       %s\n' "$@" >&2
    exit 1
}

is_root() {
    [ "$(id -u)" -eq 0 ]
}

# missing_packages COMMAND=PACKAGE...: prints the Debian packages of the commands that are missing.
# A command with a slash is a file.
missing_packages() {
    for pair in "$@"; do
        command -v "${pair%%=*}" >/dev/null || printf '%s\n' "${pair#*=}"
    done | sort -u
}

# install_packages COMMAND=PACKAGE...: installs the packages of the commands that are missing.
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

# apt ARGUMENT...: runs apt-get, which asks nothing, waits for the lock and prints only failures.
apt() {
    log=$(mktemp)
    status=0
    DEBIAN_FRONTEND=noninteractive apt-get -q -y -o DPkg::Lock::Timeout=120 "$@" >"$log" 2>&1 || status=$?
    [ "$status" -eq 0 ] || tail -n 20 "$log" >&2
    rm -f "$log"
    return "$status"
}

# apt_candidate PACKAGE: prints the version that apt would install, or nothing.
apt_candidate() {
    LC_ALL=C apt-cache policy "$1" 2>/dev/null |
        sed -n 's/^ *Candidate: *\([0-9].*\)$/\1/p'
}

# at_least VERSION MINIMUM: succeeds if the first two numbers are not lower than the minimum.
at_least() {
    a_major=${1%%.*} a_rest=${1#*.}
    b_major=${2%%.*} b_rest=${2#*.}
    a_minor=${a_rest%%[!0-9]*} b_minor=${b_rest%%[!0-9]*}
    [ "$a_major" -gt "$b_major" ] || { [ "$a_major" -eq "$b_major" ] && [ "$a_minor" -ge "$b_minor" ]; }
}

# as_owner COMMAND...: runs the command; under sudo, runs it as the calling user if that user owns the
# checkout. So the user's toolchain builds, and root leaves no files in the target directory.
as_owner() {
    if is_root && [ -n "${SUDO_USER:-}" ] && [ "$SUDO_USER" != root ] &&
        [ "$(stat -c %u .)" = "${SUDO_UID:-}" ]; then
        owner_home=$(getent passwd "$SUDO_USER" | cut -d: -f6)
        runuser -u "$SUDO_USER" -- env HOME="$owner_home" PATH="$owner_home/.cargo/bin:$PATH" "$@"
    else
        "$@"
    fi
}

# Prints the version of the crate, which all files of a release have.
crate_version() {
    sed -n '/^\[package\]$/,/^\[/ s/^version = "\(.*\)"$/\1/p' Cargo.toml
}

# Prints the oldest version of Rust that builds the crate.
wanted_rust() {
    sed -n 's/^rust-version = "\(.*\)"$/\1/p' Cargo.toml
}

# Prints the version of cargo. Succeeds if it is new enough.
cargo_version() {
    version=$(as_owner cargo --version 2>/dev/null) || return 1
    version=${version#cargo }
    printf '%s\n' "${version%% *}"
    at_least "$version" "$(wanted_rust)"
}

# Installs Rust if cargo is missing or too old.
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
