#!/bin/sh
# Builds symroute, installs it on this node, and shows what it does.
set -eu
CALLED_FROM=$PWD
cd "$(dirname "$0")"
. scripts/common.sh
. scripts/platform.sh
. scripts/files.sh
. scripts/units.sh
. scripts/node.sh
. scripts/status.sh

usage() {
    cat <<'TEXT'
symroute: sends each reply out through the NIC on which its request arrived

Usage: ./install.sh build
       sudo ./install.sh install | upgrade | uninstall [OPTION]... [--dry-run]
       sudo ./install.sh status [--json] [OPTION]...
       sudo ./install.sh --demo
       ./install.sh --help

  build      build two static programs in target/release: the plugin symroute and the command
             line tool symroutectl
  install    copy the plugin into the runtime's directory of plugins and the tool into --tool-dir,
             add the plugin to the conflist behind the primary plugin, and bring node state into
             force, with systemd also at each boot; you can run it again at any time
  upgrade    replace both programs without breaking connections; "upgrade --rollback" restores
             the old programs
  uninstall  restore the node as it was before; refused while pods need the plugin
  status     show what is installed and what is wrong with it
  --demo     set up a node with two NICs in separate network namespaces, show what fails without
             symroute and works with it, and remove everything again; this installs the required
             Debian or Ubuntu packages and changes nothing else on this machine
  --help     print this text

Options:
  --dry-run         print what the command would do, and do nothing
  --binary FILE     install this plugin. Without it, a release installs the programs beside this
                    script. A repository builds both programs, or installs those in
                    target/release if no sufficiently new Rust is installed
  --tool FILE       install this tool (symroutectl beside the plugin). Leave it out if --binary is
                    of an older release, in which one program is plugin and tool
  --bin-dir DIR     the runtime's directory of plugins (by platform, /opt/cni/bin)
  --tool-dir DIR    directory of the tool (/usr/local/bin; GKE: as --bin-dir)
  --conf-dir DIR    the runtime's directory of conflists (by platform, /etc/cni/net.d)
  --cache-dir DIR   the runtime's directory of ADD results (/var/lib/cni/results)
  --state-dir DIR   directory with what uninstall needs (/var/lib/symroute)
  --unit-dir DIR    directory of systemd units (/etc/systemd/system)
  --root DIR        file system of a node that does not run here; starts nothing
  --mode, --config, --file WORD
                    install: options for "symroutectl conflist add", see docs/conflist.md
  --before-primary  install: continue if the primary plugin has written no conflist yet
  --no-systemd      do not use systemd; uninstall then deletes unit files and stops nothing
  --no-agent        install units that act at boot and when a conflist changes, but no agent
  --no-up           install: bring no node state into force before the first pod or the next boot
  --force           uninstall: continue although pods need the plugin
  --json            status: print one JSON object, see docs/operations.md
Later commands use the directories, --no-agent and --no-systemd of "install" as defaults. Without
--no-systemd, uninstall stops all units that are there.

Environment:
  CARGO_TARGET_DIR  directory to build in instead of target/

Exit codes: 0 done (--demo: everything was as expected), 1 failed, 2 wrong usage,
3 status: not installed, 4 status: installed, but something is wrong.

Examples:
  ./install.sh build && sudo ./install.sh install --binary target/release/symroute
  sudo ./install.sh install --dry-run
  sudo ./install.sh upgrade --binary ./symroute-0.2.0
  sudo ./install.sh status --json | jq '.state, .off'
  sudo ./install.sh --demo
TEXT
}

wrong_usage() {
    printf 'install.sh: %s; see "./install.sh --help"\n' "$1" >&2
    exit 2
}

TARGET=${CARGO_TARGET_DIR:-target}
# Directory of the two programs: a release has them beside this script and has no sources.
if [ -e Cargo.toml ]; then PROGRAMS=$TARGET/release; else PROGRAMS=$PWD; fi

# Builds the two static programs in $TARGET/release.
build() {
    [ -e Cargo.toml ] || die "there are no sources here, only the programs of a release" \
        "Leave \"build\" out; to build, take the sources of the repository."
    install_packages cc=gcc
    [ -e "$(cc -print-file-name=libc.a)" ] || install_packages libc.a=libc6-dev
    need_cargo
    triple=$(as_owner rustc -vV | sed -n 's/^host: //p')
    (
        # Flags in the environment would replace those of the configuration.
        unset RUSTFLAGS CARGO_ENCODED_RUSTFLAGS
        as_owner cargo build --release --locked --bins --config conf/cargo-static.toml \
            --target "$triple" --target-dir "$TARGET"
    ) || die "the build failed" "With \"failed to download\" above: the first build needs the network."
    as_owner mkdir -p "$TARGET/release"
    for program in symroute symroutectl; do
        program=$TARGET/release/$program
        # Renamed within the directory, because the kernel refuses writes to a running program.
        as_owner cp "$TARGET/$triple/release/${program##*/}" "$program.new.$$"
        as_owner mv -f "$program.new.$$" "$program"
        is_static "$program" || die "$program is not static" "Is there a static C library (libc6-dev)?"
        printf '%s: %s, static, %s bytes\n' "$program" "$("$program" --version)" "$(wc -c <"$program")"
    done
}

# is_static PROGRAM: succeeds if the program needs no dynamic linker and no libraries of the system.
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
    [ ! -e Cargo.toml ] || build
    exec demo/two-nics.sh "$PROGRAMS:$cni_bin"
}

# absolute PATH: prints the path, relative to the directory in which the operator called this script.
absolute() {
    case $1 in '' | /*) echo "$1" ;; *) echo "$CALLED_FROM/$1" ;; esac
}

# option NAME VALUE: sets the variable of an option that has a value.
option() {
    case $1 in
        --binary) BINARY=$2 ;;
        --tool) TOOL_FILE=$2 ;;
        --tool-dir) TOOL_DIR=$2 ;;
        --bin-dir) BIN_DIR=$2 ;;
        --conf-dir) CONF_DIR=$2 ;;
        --cache-dir) CACHE_DIR=$2 ;;
        --state-dir) STATE_DIR=$2 ;;
        --unit-dir) UNIT_DIR=$2 ;;
        --root) ROOT=${2%/} ;;
        --mode) MODE=$2 ;;
        --config) CONFIG=$2 ;;
        --file) FILE=$2 ;;
        *) return 1 ;;
    esac
    case $1$2 in
        --*-dir/* | --root/*) ;;
        --*-dir* | --root*) wrong_usage "$1 $2: a path from / on is wanted" ;;
    esac
}

COMMAND='' OPTIONS='' BINARY='' TOOL_FILE='' BIN_DIR='' TOOL_DIR='' CONF_DIR='' ROOT='' MODE='' CONFIG='' FILE=''
CACHE_DIR='' STATE_DIR=/var/lib/symroute UNIT_DIR='' TOOL=''
DRY_RUN='' BEFORE_PRIMARY='' NO_SYSTEMD='' NO_AGENT='' NO_UP='' FORCE='' ROLLBACK='' JSON=''

[ $# -ge 1 ] || wrong_usage "nothing to do"
while [ $# -gt 0 ]; do
    word=$1
    shift
    case $word in
        --binary | --tool | --bin-dir | --tool-dir | --conf-dir | --cache-dir | --state-dir | --unit-dir | --root | \
            --mode | --config | --file)
            [ $# -gt 0 ] || wrong_usage "$word: a value is missing"
            option "$word" "$1"
            shift
            ;;
        --*=*) option "${word%%=*}" "${word#*=}" || wrong_usage "unknown word \"$word\"" ;;
        --dry-run) DRY_RUN=yes ;;
        --before-primary) BEFORE_PRIMARY=yes ;;
        --no-systemd) NO_SYSTEMD=yes ;;
        --no-agent) NO_AGENT=yes ;;
        --no-up) NO_UP=yes ;;
        --force) FORCE=yes ;;
        --rollback) ROLLBACK=yes ;;
        --json) JSON=yes ;;
        -h | --help | help) usage && exit ;;
        build | install | upgrade | uninstall | status | --demo)
            [ -z "$COMMAND" ] || wrong_usage "one command at a time, not \"$COMMAND $word\""
            COMMAND=$word
            continue
            ;;
        demo) wrong_usage "unknown word \"demo\", did you mean \"--demo\"?" ;;
        --build | --install | --upgrade | --uninstall | --status)
            wrong_usage "unknown word \"$word\", did you mean \"${word#--}\"?"
            ;;
        *) wrong_usage "unknown word \"$word\"" ;;
    esac
    OPTIONS="$OPTIONS $word"
done
case $COMMAND in
    '') wrong_usage "one of build, install, upgrade, uninstall, status, --demo is missing" ;;
    build | --demo) [ -z "$OPTIONS" ] || wrong_usage "\"$COMMAND\" stands alone" ;;
esac
[ -z "$ROLLBACK" ] || [ "$COMMAND" = upgrade ] || wrong_usage "--rollback goes with \"upgrade\""
[ -z "$FORCE" ] || [ "$COMMAND" = uninstall ] || wrong_usage "--force goes with \"uninstall\""
[ -z "$JSON" ] || [ "$COMMAND" = status ] || wrong_usage "--json goes with \"status\""
BINARY=$(absolute "$BINARY") TOOL_FILE=$(absolute "$TOOL_FILE") CONFIG=$(absolute "$CONFIG")

case $COMMAND in
    build) build ;;
    --demo) demo ;;
    install) install_node ;;
    upgrade) upgrade_node ;;
    uninstall) uninstall_node ;;
    status) status_node ;;
esac
