#!/bin/sh
# Builds symroute, and shows what it does.
set -eu
cd "$(dirname "$0")"
. scripts/common.sh

usage() {
    cat <<'TEXT'
symroute: replies leave this node by the NIC the request came in by

Usage: ./install.sh build
       sudo ./install.sh --demo
       ./install.sh --help

  build   build one static program, target/release/symroute
  --demo  lay out a node with two NICs in network namespaces of its own, show what fails
          without symroute and works with it, and take everything away again; installs the
          Debian or Ubuntu packages it needs; nothing else of this machine is changed
  --help  print this text

Environment:
  CARGO_TARGET_DIR  where to build instead of target/

Exit codes: 0 done (--demo: everything was as it should be), 1 failed, 2 wrong usage.

Examples:
  ./install.sh build && target/release/symroute --version
  sudo ./install.sh --demo
TEXT
}

wrong_usage() {
    printf 'install.sh: %s; see "./install.sh --help"\n' "$1" >&2
    exit 2
}

TARGET=${CARGO_TARGET_DIR:-target}

# One static program at $TARGET/release/symroute.
build() {
    install_packages cc=gcc
    [ -e "$(cc -print-file-name=libc.a)" ] || install_packages libc.a=libc6-dev
    need_cargo
    triple=$(as_owner rustc -vV | sed -n 's/^host: //p')
    (
        # Flags of the environment would replace those of the configuration.
        unset RUSTFLAGS CARGO_ENCODED_RUSTFLAGS
        as_owner cargo build --release --locked --bin symroute --config conf/cargo-static.toml \
            --target "$triple" --target-dir "$TARGET"
    ) || die "the build failed" "With \"failed to download\" above: the first build needs the network."
    program=$TARGET/release/symroute
    as_owner mkdir -p "$TARGET/release"
    # By rename in the same directory: a program that runs can't be written to.
    as_owner cp "$TARGET/$triple/release/symroute" "$program.new.$$"
    as_owner mv -f "$program.new.$$" "$program"
    is_static "$program" || die "$program is not static" "Is there a static C library (libc6-dev)?"
    printf '%s: %s, static, %s bytes\n' "$program" "$("$program" --version)" "$(wc -c <"$program")"
}

# Whether the program works without a dynamic linker and libraries of the system.
is_static() {
    case $(LC_ALL=C ldd "$1" 2>&1) in
        *"statically linked"* | *"not a dynamic executable"*) ;;
        *) return 1 ;;
    esac
}

demo() {
    is_root || die "the demo makes network namespaces: only root may" "Run: sudo ./install.sh --demo"
    export STEPS=9
    step "Packages"
    cni_bin=/usr/lib/cni
    for directory in /opt/cni/bin /usr/libexec/cni; do
        [ -x "$cni_bin/ptp" ] || [ ! -x "$directory/ptp" ] || cni_bin=$directory
    done
    install_packages ip=iproute2 nft=nftables busybox=busybox-static "$cni_bin/ptp=containernetworking-plugins"
    step "Build"
    build
    exec demo/two-nics.sh "$TARGET/release:$cni_bin"
}

[ $# -ge 1 ] || wrong_usage "nothing to do"
[ $# -eq 1 ] || wrong_usage "one word at a time, not \"$*\""
case $1 in
    -h | --help | help) usage ;;
    build) build ;;
    --demo) demo ;;
    demo) wrong_usage "unknown word \"demo\", did you mean \"--demo\"?" ;;
    --build) wrong_usage "unknown word \"--build\", did you mean \"build\"?" ;;
    *) wrong_usage "unknown word \"$1\"" ;;
esac
