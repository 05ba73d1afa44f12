# shellcheck shell=sh
# Installs, upgrades and uninstalls symroute on a node. POSIX sh, to be sourced after units.sh.
#
# The order of the steps matters. A conflist never names a missing plugin, and the plugin stays as long as
# the runtime will call it. So a node starts pods after a kill at any point, and the same command
# completes the work. "symroutectl conflist" edits JSON, not this script.
#
# In older releases, one program is plugin and tool. The installed, the new and the kept program may be
# such a program. Then there is no file of the tool.

# Sets the paths, all of them below $ROOT.
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

# Takes the directories that install has noted, unless the command line names others.
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
            # An earlier install may have left units that run: uninstall stops them without the option.
            no-systemd) [ "$COMMAND" = uninstall ] || NO_SYSTEMD=${NO_SYSTEMD:-$value} ;;
        esac
    done <"$ROOT$STATE_DIR/places"
}

note_places() {
    printf '%s|%s\n' bin "$BIN_DIR" conf "$CONF_DIR" tool "$TOOL_DIR" cache "$CACHE_DIR" units "$UNIT_DIR" \
        no-agent "$NO_AGENT" no-systemd "$NO_SYSTEMD"
}

# conflist VERB [OPTION...]: runs "$TOOL conflist".
conflist() {
    verb=$1
    shift
    "$TOOL" conflist "$verb" "$@" ${JSON:+--json} --root "${ROOT:-/}" --conf-dir "$CONF_DIR" --state-dir "$STATE_DIR"
}

# conflist_as_wished VERB [OPTION...]: adds the options that this script was given.
conflist_as_wished() {
    verb=$1
    shift
    [ -z "$FILE" ] || set -- --file "$FILE" "$@"
    [ -z "$CONFIG" ] || set -- --config "$CONFIG" "$@"
    [ -z "$MODE" ] || set -- --mode "$MODE" "$@"
    # Older releases lack this option and bring nothing into force here.
    [ -z "$NO_UP" ] || is_both "$TOOL" || set -- --no-up "$@"
    conflist "$verb" "$@"
}

# Prints the node's status. Exit codes: 0 healthy, 3 not in force, 4 something is wrong.
node_status() {
    [ -z "$ROOT" ] || return 3
    is_both "$TOOL" || set -- --conf-dir "$CONF_DIR"
    "$TOOL" status ${JSON:+--json} "$@"
}

attachments() {
    "$TOOL" attachments --root "${ROOT:-/}" --cache-dir "$CACHE_DIR" ${JSON:+--json}
}

# is_both PROGRAM: succeeds if the program is of an older release, plugin and tool in one.
is_both() {
    "$1" --help 2>/dev/null | grep -q '^Usage: symroute '
}

# Sets SOURCE and TOOL_SOURCE, the programs to install, VERSION and TOOL. Without TOOL_SOURCE, SOURCE is
# plugin and tool in one.
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

# checked FILE NAME OPTION: prints the version of the program. Dies if the program does not run.
checked() {
    [ -f "$1" ] || die "$1: no such file" "Give a $2 program by $3 FILE." "Nothing was changed."
    said=$("$1" --version 2>/dev/null) || said=''
    case $said in
        "$2 "*) printf '%s\n' "$said" ;;
        *) die "$1 does not run here, or is not $2" \
            "Is it of this processor, executable, and static? Give another one by $3 FILE." "Nothing was changed." ;;
    esac
}

# put FROM TO VERSION: installs a program.
put() {
    if cmp -s "$1" "$2" && [ -x "$2" ]; then
        printf '%s is %s already\n' "$2" "$3"
        return
    fi
    act "put $3 in place as $2" replace "$2" 755 cat "$1"
}

# Installs the programs. The plugin may need the tool but not the reverse. So the script installs the tool
# first and, if one program is both, deletes the old tool last.
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

# Checks everything that install needs, before the first change.
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
    if has_systemd; then
        writable "$UNITS" "systemd reads units there" "--unit-dir, or leave them out by --no-systemd"
        check_systemd "Run this where systemctl works; with --no-systemd, $COMMAND leaves the units alone."
    fi
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
    else
        note_without_systemd
    fi
    [ -n "$DRY_RUN" ] || printf 'Installed. To look at it: %s status\n' "$TOOL"
}

# Says that nothing starts symroute at boot, and what the operator has to start instead.
note_without_systemd() {
    why="no systemd here:" program=$TOOL_DIR/symroutectl
    [ -z "$NO_SYSTEMD" ] || why="with --no-systemd,"
    [ -n "$TOOL_SOURCE" ] || program=$BIN_DIR/symroute
    set -- --conf-dir "$CONF_DIR"
    if [ -n "$NO_AGENT" ]; then
        set -- up "$@"
        when="at each boot"
        [ -z "$BEFORE_PRIMARY" ] || when="$when, and run install again when the primary has written its conflist"
    else
        [ "$CACHE_DIR" = /var/lib/cni/results ] || set -- "$@" --cache-dir "$CACHE_DIR"
        [ "$STATE_DIR" = /var/lib/symroute ] || set -- "$@" --state-dir "$STATE_DIR"
        set -- agent "$@" --manage-conflist
        when="under your own supervisor"
    fi
    printf 'note: %s nothing starts symroute at boot; run "%s" %s\n' "$why" "$program $*" "$when"
}

node_up() {
    [ -z "$NO_UP" ] && [ -z "$ROOT" ] || return 0
    act "have node state in force" quietly "$TOOL" up --conf-dir "$CONF_DIR" ||
        die "the node state could not be made" "See above. Pods start all the same once that is put right; run this again."
}

# quietly COMMAND...: runs the command and prints only its standard error.
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

# Succeeds if an upgrade was killed before both programs were new. A rollback then has to restore the
# programs that this upgrade has kept, not the present mixture.
is_under_way() {
    [ -e "$UPGRADING" ] && [ "$(cat "$UPGRADING")" != "$(hash_of "$BIN" "$CTL")" ]
}

# Keeps both programs for a rollback. A kill in the middle leaves nothing that a rollback would use.
keep_previous() {
    [ -d "$STATE" ] || act "make $STATE" mkdir -p "$STATE"
    delete "$PREVIOUS" "$PREVIOUS_TOOL"
    if [ -e "$CTL" ] && ! is_both "$BIN"; then
        act "keep the old tool as $PREVIOUS_TOOL" replace "$PREVIOUS_TOOL" 755 cat "$CTL"
    fi
    act "keep the old plugin as $PREVIOUS" replace "$PREVIOUS" 755 cat "$BIN"
    [ -n "$DRY_RUN" ] || replace "$UPGRADING" 644 hash_of "$SOURCE" ${TOOL_SOURCE:+"$TOOL_SOURCE"}
}

# Restarts the agent and updates the node state with the new program. It changes only what differs, so
# connections go on.
refresh_node() {
    [ -z "$ROOT" ] || return 0
    if has_systemd && [ -e "$UNITS/symroute-agent.service" ]; then
        act "restart the agent" systemd try-restart symroute-agent.service
    fi
    code=0
    node_status >/dev/null 2>&1 || code=$?
    [ "$code" -eq 3 ] || act "bring what is in force up to date" quietly "$TOOL" up
}

# Sets TOOL to the installed program, or else to another one that has the required commands.
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
    [ -n "$NO_SYSTEMD" ] || ! has_units || check_systemd \
        "Run this where systemctl works; with --no-systemd, uninstall only deletes the unit files: stop the agent first."
    check_removal
    refuse_while_needed "Nothing was changed."
    disable_units
    if [ -n "$DRY_RUN" ]; then conflist remove --dry-run || [ $? -eq 3 ]; else remove_entry; fi
    node_down
    remove_units
    # Without a tool, the plugin is tool too, and stays to the end. Otherwise it is deleted before the note that says
    # where it is.
    last=$BIN
    [ ! -e "$CTL" ] || { delete "$BIN"; last=''; }
    delete_state
    delete "$ROOT/var/log/symroute.log" "$ROOT$BIN_DIR/.symroute.new" "$ROOT$TOOL_DIR/.symroute.new" \
        "$UNITS/.symroute.new"
    # The tool is last, because a repeated uninstall needs it.
    delete "$last" "$CTL"
    [ -n "$DRY_RUN" ] || echo "Uninstalled."
}

# Deletes what symroute has written in $STATE. A directory with other files stays.
delete_state() {
    [ -d "$STATE" ] || return 0
    others=$(ls -A "$STATE")
    for name in conflist places "${PREVIOUS##*/}" "${PREVIOUS_TOOL##*/}" "${UPGRADING##*/}" .symroute.new; do
        delete "$STATE/$name"
        others=$(printf '%s\n' "$others" | grep -vxF -e "$name") || true
    done
    [ -n "$others" ] || act "delete $STATE" rmdir "$STATE"
}

# Dies if our entry can't be removed, before the first change.
check_removal() {
    code=0
    said=$(conflist remove --dry-run 2>&1) || code=$?
    [ "$code" -eq 0 ] || [ "$code" -eq 3 ] || die "$said" "Nothing was changed."
}

# Dies if pods need the plugin. CRI-O and podman keep the list of plugins per pod and call symroute at the
# pod's end. containerd calls the plugins that the conflist names at that time, so after "conflist remove"
# its attached pods do not need the plugin. The tool finds out which runtime the node has.
refuse_while_needed() {
    code=0
    pods=$(attachments) || code=$?
    [ "$code" -eq 0 ] || [ "$code" -eq 4 ] || die "could not find out which pods need symroute" "See above." "$1"
    # grep fails if no line is left.
    pods=$(printf '%s\n' "$pods" | grep -v '^enrolled: ') || true
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

# Removes our entry, and checks that it stays removed and that no pod has started with it meanwhile.
remove_entry() {
    conflist remove || [ $? -eq 3 ] || die "our entry could not be taken out" \
        "See above. The plugin stays: the runtime calls it."
    sleep 1
    case $(conflist remove --dry-run 2>&1) in
        *"would be "*) die "$CONFS: another program restores our entry" \
            "Perhaps an agent of a DaemonSet: stop it and run this again." ;;
    esac
    refuse_while_needed "A pod has started meanwhile. The conflist names us no longer; the plugin stays until then."
}

# Forced, because no pod needs the plugin, or because the operator has given --force.
node_down() {
    [ -z "$ROOT" ] || return 0
    act "take the node state away" quietly "$TOOL" down --force ||
        die "the node state could not be taken away" "See above; then run this again."
    code=0
    said=$(node_status 2>&1) || code=$?
    [ -n "$DRY_RUN" ] || [ "$code" -eq 3 ] || die "node state is in force still" "$said" \
        "An agent that runs elsewhere? Stop it and run this again."
    delete /run/symroute
}
