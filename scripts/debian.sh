# shellcheck shell=bash
# Debian packages: installs daemons that only tests start, and unpacks packages into folders (other kernels,
# files of another architecture). To be sourced after common.sh.

DEBIAN=$(realpath -m "${CARGO_TARGET_DIR:-target}/debian")
readonly DEBIAN
readonly KEYRING=/usr/share/keyrings/debian-archive-keyring.gpg

# install_daemons COMMAND=PACKAGE...: like install_packages, but keeps the service of the same name from
# running, now and after a boot: the tests start the program themselves.
install_daemons() {
    local pair unit
    for pair in "$@"; do
        ! command -v "${pair%%=*}" >/dev/null || continue
        unit=${pair%%=*}.service
        # The mask keeps the package from starting the service. After a kill, it stays until the next boot.
        [[ ! -d /run/systemd/system ]] || systemctl mask --quiet --runtime "$unit"
        install_packages "$pair"
        [[ ! -d /run/systemd/system ]] || { systemctl unmask --quiet --runtime "$unit" && systemctl disable --quiet "$unit"; }
    done
}

# Prints the mirror of this machine's own packages, or DEBIAN_MIRROR.
debian_mirror() {
    local site=${DEBIAN_MIRROR-}
    # shellcheck disable=SC2016 # apt-get's own words
    [[ -n $site ]] || site=$(apt-get indextargets --format '$(SITE)' | grep -m 1 '/debian/*$') ||
        die "find a mirror of Debian in apt's sources" "Set DEBIAN_MIRROR to the address of one."
    printf '%s\n' "${site%/}"
}

# apt_of PROGRAM SUITE ARCHITECTURE ARGUMENT...: runs apt-get or apt-cache with only this suite, as on a
# machine of this architecture without packages. Neither reads nor changes this machine's own lists.
apt_of() {
    local program=$1 suite=$2 arch=$3
    shift 3
    as_owner "$program" -q -o APT::Sandbox::User= -o Acquire::Languages=none -o Acquire::Retries=3 \
        -o Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false \
        -o APT::Architecture="$arch" -o APT::Architectures::=amd64 -o APT::Architectures::=arm64 \
        -o Dir::Etc::SourceList="$DEBIAN/$suite/sources.list" -o Dir::Etc::SourceParts=/dev/null \
        -o Dir::State::Lists="$DEBIAN/$suite/lists" -o Dir::State::status="$DEBIAN/$suite/status" \
        -o Dir::Cache="$DEBIAN/$suite/cache" -o Debug::NoLocking=1 "$@"
}

# or_log COMMAND...: runs the command and prints its output only if it fails.
or_log() {
    local log status=0
    log=$(mktemp)
    "$@" >"$log" 2>&1 || status=$?
    [[ $status -eq 0 ]] || cat "$log" >&2
    rm -f "$log"
    return "$status"
}

# Reads the lists of a suite, with its security updates.
debian_lists() {
    local suite=$1 mirror
    [[ -e $KEYRING ]] || install_packages "$KEYRING=debian-archive-keyring"
    mirror=$(debian_mirror) || return 1
    as_owner mkdir -p "$DEBIAN/$suite/lists/partial" "$DEBIAN/$suite/cache/archives/partial"
    as_owner touch "$DEBIAN/$suite/status"
    printf 'deb [signed-by=%s] %s main\n' "$KEYRING" "$mirror $suite" "$KEYRING" "$mirror-security $suite-security" |
        as_owner tee "$DEBIAN/$suite/sources.list" >/dev/null
    or_log apt_of apt-get "$suite" amd64 update
}

# debian_unpack SUITE ARCHITECTURE DIR PACKAGE...: unpacks these packages into DIR without dependencies.
debian_unpack() {
    local suite=$1 arch=$2 dir=$3 work=$3.debs deb
    shift 3
    as_owner mkdir -p "$dir" "$work"
    (cd "$work" && or_log apt_of apt-get "$suite" "$arch" download "$@") || return 1
    for deb in "$work"/*.deb; do
        as_owner dpkg-deb -x "$deb" "$dir" || return 1
    done
    as_owner rm -r "$work"
}

# debian_closure SUITE ARCHITECTURE PACKAGE...: prints the names of these packages and all dependencies.
debian_closure() {
    apt_of apt-get "$1" "$2" install --simulate --no-install-recommends "${@:3}" |
        sed -n 's/^Inst \([^ ]*\) .*/\1/p'
}
