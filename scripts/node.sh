# shellcheck shell=sh
# symroute on a node: install, upgrade, uninstall. POSIX sh, to be sourced after units.sh.
#
# The order is the point. A conflist never names a plugin that is not there, and a plugin stays as
# long as the runtime will call it; so a kill at any point leaves a node that starts pods, and the
# same command again completes. JSON is the tool's business: "symroutectl conflist".
#
# Older releases were one program, plugin and tool in one. Such a program may be what is installed, what
# is to be installed, and what was kept; there is no file of the tool then.

# Paths below $ROOT, as all of this uses them.
places() {
    recall_places
    CACHE_DIR=${CACHE_DIR:-/var/lib/cni/results} UNIT_DIR=${UNIT_DIR:-/etc/systemd/system}
    detect_platform
    BIN=$ROOT$BIN_DIR/symroute CTL=$ROOT$TOOL_DIR/symroutectl
    CONFS=$ROOT$CONF_DIR STATE=$ROOT$STATE_DIR UNITS=$ROOT$UNIT_DIR
    PREVIOUS=$STATE/previous PREVIOUS_TOOL=$STATE/previous-tool UPGRADING=$STATE/upgrading
    [ -z "$DRY_RUN" ] || printf 'A dry run: nothing is changed.\n'
    printf 'Platform: %s. Plugins: %s. Tool: %s. Conflists: %s.\n' \
        "${PLATFORM:-unknown}" "$ROOT$BIN_DIR" "$ROOT$TOOL_DIR" "$CONFS"
}

# What install noted, where another command was not given other directories.
recall_places() {
    [ "$COMMAND" != install ] && [ -r "$ROOT$STATE_DIR/places" ] || return 0
    while IFS='|' read -r name value; do
        case $name in
            bin) BIN_DIR=${BIN_DIR:-$value} ;;
            conf) CONF_DIR=${CONF_DIR:-$value} ;;
            tool) TOOL_DIR=${TOOL_DIR:-$value} ;;
            cache) CACHE_DIR=${CACHE_DIR:-$value} ;;
            units) UNIT_DIR=${UNIT_DIR:-$value} ;;
            no-agent) NO_AGENT=${NO_AGENT:-$value} ;;
            no-systemd) NO_SYSTEMD=${NO_SYSTEMD:-$value} ;;
        esac
    done <"$ROOT$STATE_DIR/places"
}

note_places() {
    printf '%s|%s\n' bin "$BIN_DIR" conf "$CONF_DIR" tool "$TOOL_DIR" cache "$CACHE_DIR" units "$UNIT_DIR" \
        no-agent "$NO_AGENT" no-systemd "$NO_SYSTEMD"
}

# conflist VERB [OPTION...]: by the program $TOOL.
conflist() {
    verb=$1
    shift
    "$TOOL" conflist "$verb" "$@" ${JSON:+--json} --root "${ROOT:-/}" --conf-dir "$CONF_DIR" --state-dir "$STATE_DIR"
}

# conflist_as_wished VERB [OPTION...]: with what was given to this script.
conflist_as_wished() {
    verb=$1
    shift
    [ -z "$FILE" ] || set -- --file "$FILE" "$@"
    [ -z "$CONFIG" ] || set -- --config "$CONFIG" "$@"
    [ -z "$MODE" ] || set -- --mode "$MODE" "$@"
    # Older releases have no such word, and bring nothing into force here.
    [ -z "$NO_UP" ] || is_both "$TOOL" || set -- --no-up "$@"
    conflist "$verb" "$@"
}

# How the running node is: 0 well, 3 not in force, 4 something is wrong.
node_status() {
    [ -z "$ROOT" ] || return 3
    is_both "$TOOL" || set -- --conf-dir "$CONF_DIR"
    "$TOOL" status ${JSON:+--json} "$@"
}

attachments() {
    "$TOOL" attachments --root "${ROOT:-/}" --cache-dir "$CACHE_DIR" ${JSON:+--json}
}

# Whether a program is of an older release: plugin and tool in one.
is_both() {
    "$1" --help 2>/dev/null | grep -q '^Usage: symroute '
}

# Sets SOURCE and TOOL_SOURCE, the programs to put in place, VERSION and TOOL. Without TOOL_SOURCE one
# program is both.
find_source() {
    SOURCE=$BINARY TOOL_SOURCE=$TOOL_FILE
    if [ -z "$SOURCE" ]; then
        SOURCE=$PROGRAMS/symroute
        if [ -e Cargo.toml ] && [ -z "$DRY_RUN" ] && cargo_version >/dev/null; then
            build
        elif [ ! -e "$SOURCE" ]; then
            die "no program to install" "Run ./install.sh build in the repository, or give one by --binary FILE." \
                "Nothing was changed."
        fi
    fi
    VERSION=$(checked "$SOURCE" symroute --binary)
    if is_both "$SOURCE"; then
        [ -z "$TOOL_SOURCE" ] || die "$SOURCE is plugin and tool in one" "Leave --tool out." "Nothing was changed."
        TOOL=$SOURCE
        return
    fi
    TOOL_SOURCE=${TOOL_SOURCE:-${SOURCE%/*}/symroutectl} TOOL=$TOOL_SOURCE
    TOOL_VERSION=$(checked "$TOOL" symroutectl --tool)
}

# checked FILE NAME OPTION: prints the version of this program, which has to run.
checked() {
    [ -f "$1" ] || die "$1: no such file" "Give a $2 program by $3 FILE." "Nothing was changed."
    said=$("$1" --version 2>/dev/null) || said=''
    case $said in
        "$2 "*) printf '%s\n' "$said" ;;
        *) die "$1 does not run here, or is not $2" \
            "Is it of this processor, executable, and static? Give another one by $3 FILE." "Nothing was changed." ;;
    esac
}

# put FROM TO VERSION
put() {
    if cmp -s "$1" "$2" && [ -x "$2" ]; then
        printf '%s is %s already\n' "$2" "$3"
        return
    fi
    act "put $3 in place as $2" replace "$2" 755 cat "$1"
}

# Puts the programs in place. The plugin may need the tool, never the other way round: so the tool
# comes first, and where one program is both, goes last.
put_programs() {
    [ -z "$TOOL_SOURCE" ] || put "$TOOL_SOURCE" "$CTL" "$TOOL_VERSION"
    put "$SOURCE" "$BIN" "$VERSION"
    [ -n "$TOOL_SOURCE" ] || delete "$CTL"
    [ -n "$DRY_RUN" ] || TOOL=$BIN
    [ -n "$DRY_RUN" ] || [ -z "$TOOL_SOURCE" ] || TOOL=$CTL
}

check_conflist() {
    code=0
    said=$(conflist_as_wished add --dry-run 2>&1) || code=$?
    case $code in
        0) ;;
        3) [ -n "$BEFORE_PRIMARY" ] || die "$said" \
            "Install the primary CNI plugin first. On a node that gets it later, add --before-primary:" \
            "the agent puts our entry in when the primary has written its file." "Nothing was changed." ;;
        *) die "$said" "Nothing was changed." ;;
    esac
}

# All that install needs, before anything is changed.
check_install() {
    is_root || [ -n "$ROOT" ] || die "the node's directories and network: only root may" "Run: sudo ./install.sh $COMMAND"
    writable "$ROOT$BIN_DIR" "the runtime takes plugins from there" --bin-dir
    if [ -n "$TOOL_SOURCE" ] || [ -e "$CTL" ]; then
        writable "$ROOT$TOOL_DIR" "the tool goes there, or into the directory of plugins" --tool-dir
    fi
    if [ -z "$BEFORE_PRIMARY" ] || [ -e "$CONFS" ]; then
        writable "$CONFS" "the runtime reads conflists there" --conf-dir
    fi
    writable "$(existing "$STATE")" "what was done is noted below it" --state-dir
    ! has_systemd || writable "$UNITS" "systemd reads units there" "--unit-dir, or leave them out by --no-systemd"
    code=0
    said=$(node_status 2>&1) || code=$?
    [ "$code" -ne 1 ] || die "$said" "Nothing was changed."
}

install_node() {
    find_source
    places
    check_install
    check_conflist
    [ -d "$STATE" ] || act "make $STATE" mkdir -p "$STATE"
    [ -n "$DRY_RUN" ] || replace "$STATE/places" 644 note_places
    put_programs
    if [ -n "$DRY_RUN" ]; then
        conflist_as_wished add --dry-run || true
    else
        conflist_as_wished add || [ $? -eq 3 ] || die "our entry could not be put in" \
            "See above. The programs are in place and harmless; run this again, or: ./install.sh uninstall"
    fi
    node_up
    if has_systemd; then
        put_units
        enable_units
    elif [ -n "$BEFORE_PRIMARY" ]; then
        echo "note: no systemd, so no agent waits for the primary's conflist; run install again when it is there"
    fi
    [ -n "$DRY_RUN" ] || printf 'Installed. To look at it: %s status\n' "$TOOL"
}

node_up() {
    [ -z "$NO_UP" ] && [ -z "$ROOT" ] || return 0
    act "have node state in force" quietly "$TOOL" up --conf-dir "$CONF_DIR" ||
        die "the node state could not be made" "See above. Pods start all the same once that is put right; run this again."
}

# quietly COMMAND...: what it prints is of interest on failure only, and that goes to stderr.
quietly() {
    "$@" >/dev/null
}

upgrade_node() {
    if [ -n "$ROLLBACK" ]; then
        BINARY=$ROOT$STATE_DIR/previous TOOL_FILE=$ROOT$STATE_DIR/previous-tool
        [ -e "$BINARY" ] || die "$BINARY: no such file: there was no upgrade" "Nothing was changed."
        [ -e "$TOOL_FILE" ] || TOOL_FILE=''
    fi
    find_source
    places
    [ -e "$BIN" ] || die "$BIN: no such file: symroute is not installed there" \
        "Run ./install.sh install, or give --bin-dir." "Nothing was changed."
    check_install
    [ -n "$ROLLBACK" ] || is_in_place || is_under_way || keep_previous
    put_programs
    [ -n "$DRY_RUN" ] || rm -f "$UPGRADING"
    ! has_systemd || [ ! -e "$UNITS/symroute-up.service" ] || put_units
    refresh_node
    [ -n "$DRY_RUN" ] || printf 'The program is %s now.\n' "$VERSION"
    [ ! -e "$PREVIOUS" ] || [ -n "$ROLLBACK" ] || echo "To go back: ./install.sh upgrade --rollback"
}

is_in_place() {
    cmp -s "$SOURCE" "$BIN" || return 1
    if [ -n "$TOOL_SOURCE" ]; then cmp -s "$TOOL_SOURCE" "$CTL"; else [ ! -e "$CTL" ]; fi
}

# Whether an upgrade was killed before both programs were those that it was to bring. What it has kept
# is what a rollback has to bring back, and not the mixture that is there now.
is_under_way() {
    [ -e "$UPGRADING" ] && [ "$(cat "$UPGRADING")" != "$(hash_of "$BIN" "$CTL")" ]
}

# Keeps both programs. Of a kill in the middle nothing is left that a rollback would take.
keep_previous() {
    [ -d "$STATE" ] || act "make $STATE" mkdir -p "$STATE"
    delete "$PREVIOUS" "$PREVIOUS_TOOL"
    if [ -e "$CTL" ] && ! is_both "$BIN"; then
        act "keep the old tool as $PREVIOUS_TOOL" replace "$PREVIOUS_TOOL" 755 cat "$CTL"
    fi
    act "keep the old plugin as $PREVIOUS" replace "$PREVIOUS" 755 cat "$BIN"
    [ -n "$DRY_RUN" ] || replace "$UPGRADING" 644 hash_of "$SOURCE" ${TOOL_SOURCE:+"$TOOL_SOURCE"}
}

# What runs, and what is in force, becomes that of the new program. Connections go on: only what
# differs is changed.
refresh_node() {
    [ -z "$ROOT" ] || return 0
    if has_systemd && [ -e "$UNITS/symroute-agent.service" ]; then
        act "restart the agent" systemd try-restart symroute-agent.service
    fi
    code=0
    node_status >/dev/null 2>&1 || code=$?
    [ "$code" -eq 3 ] || act "bring what is in force up to date" quietly "$TOOL" up
}

# Sets TOOL: the program that is installed, or else another that knows how.
find_tool() {
    beside=${BINARY:+${BINARY%/*}/symroutectl}
    for TOOL in "$CTL" "$BIN" "$TOOL_FILE" "$beside" "$BINARY" "$PROGRAMS/symroutectl"; do
        [ -x "$TOOL" ] && "$TOOL" --help 2>/dev/null | grep -q attachments && return
    done
    TOOL=''
}

uninstall_node() {
    places
    find_tool
    if [ -z "$TOOL" ]; then
        traces=$(ls -d "$BIN" "$CTL" "$STATE" "$UNITS"/symroute-* 2>/dev/null) || true
        [ -n "$traces" ] || { echo "symroute is not installed: nothing to do"; return; }
        die "no symroute program that can take the rest away: $(echo "$traces" | tr '\n' ' ')" \
            "Build one (./install.sh build) or give one by --binary FILE." "Nothing was changed."
    fi
    is_root || [ -n "$ROOT" ] || die "the node's directories and network: only root may" "Run: sudo ./install.sh uninstall"
    [ ! -e "$BIN" ] || writable "$ROOT$BIN_DIR" "the plugin is there" --bin-dir
    [ ! -e "$CTL" ] || writable "$ROOT$TOOL_DIR" "the tool is there" --tool-dir
    [ ! -e "$CONFS" ] || writable "$CONFS" "the runtime reads conflists there" --conf-dir
    check_removal
    refuse_while_needed "Nothing was changed."
    disable_units
    if [ -n "$DRY_RUN" ]; then conflist remove --dry-run || [ $? -eq 3 ]; else remove_entry; fi
    node_down
    remove_units
    # Before the note of where it is.
    [ ! -e "$CTL" ] || delete "$BIN"
    # What symroute itself has written; a directory that has something else in it stays.
    delete "$STATE/conflist" "$STATE/places" "$PREVIOUS" "$PREVIOUS_TOOL" "$UPGRADING" "$STATE/.symroute.new"
    [ ! -d "$STATE" ] || [ -n "$(ls -A "$STATE")" ] || act "delete $STATE" rmdir "$STATE"
    delete "$ROOT/var/log/symroute.log" "$ROOT$BIN_DIR/.symroute.new" "$ROOT$TOOL_DIR/.symroute.new" \
        "$UNITS/.symroute.new"
    # The tool last: with it this can be run again.
    delete "$BIN" "$CTL"
    [ -n "$DRY_RUN" ] || echo "Uninstalled."
}

# Whether our entry can be taken out at all, before anything is changed.
check_removal() {
    code=0
    said=$(conflist remove --dry-run 2>&1) || code=$?
    [ "$code" -eq 0 ] || [ "$code" -eq 3 ] || die "$said" "Nothing was changed."
}

# CRI-O and podman keep the list of plugins per pod and call symroute at the pod's end: such pods need the
# plugin. Pods that are only attached don't: containerd calls what the conflist names by then, so after
# "conflist remove" it does not call symroute for them. The tool knows which runtime it is.
refuse_while_needed() {
    code=0
    pods=$(attachments) || code=$?
    [ "$code" -eq 0 ] || [ "$code" -eq 4 ] || die "could not tell which pods need symroute" "See above." "$1"
    pods=$(printf '%s\n' "$pods" | grep -v '^enrolled: ') || true # none
    [ -n "$pods" ] || return 0
    if [ -n "$FORCE" ]; then
        printf 'note: %s\n' "forced: these pods will not end cleanly while the plugin is missing" "$pods"
        return
    fi
    die "pods need symroute still: without it the runtime can't end them
$pods" \
        "Stop the agent (systemctl stop symroute-agent), run \"$TOOL conflist remove\", and" \
        "restart these pods or drain the node; then run this again. --force goes on all the same." "$1"
}

# Takes our entry out, and sees to it that it stays out and that no pod came in between.
remove_entry() {
    conflist remove || [ $? -eq 3 ] || die "our entry could not be taken out" \
        "See above. The plugin stays: the runtime calls it."
    sleep 1
    case $(conflist remove --dry-run 2>&1) in
        *"would be "*) die "$CONFS: somebody puts our entry back" \
            "An agent that runs elsewhere, as a DaemonSet? Stop it and run this again." ;;
    esac
    refuse_while_needed "A pod has started meanwhile. The conflist names us no longer; the plugin stays until then."
}

# By force: it has been seen to that no pod needs us, or a person has said not to mind.
node_down() {
    [ -z "$ROOT" ] || return 0
    act "take the node state away" quietly "$TOOL" down --force ||
        die "the node state could not be taken away" "See above; then run this again."
    [ -z "$DRY_RUN" ] || return 0
    code=0
    said=$(node_status 2>&1) || code=$?
    [ "$code" -eq 3 ] || die "node state is in force still" "$said" \
        "An agent that runs elsewhere? Stop it and run this again."
    delete /run/symroute
}
