# shellcheck shell=sh
# symroute on a node: install, upgrade, uninstall. POSIX sh, to be sourced after units.sh.
#
# The order is the point. A conflist never names a program that is not there, and a program stays
# as long as the runtime will call it; so a kill at any point leaves a node that starts pods, and the
# same command again completes. JSON is the program's business: "symroutectl conflist".

# Paths below $ROOT, as all of this uses them.
places() {
    detect_platform
    BIN=$ROOT$BIN_DIR/symroute
    CONFS=$ROOT$CONF_DIR STATE=$ROOT$STATE_DIR UNITS=$ROOT$UNIT_DIR
    PREVIOUS=$STATE/previous
    [ -z "$DRY_RUN" ] || printf 'A dry run: nothing is changed.\n'
    printf 'Platform: %s. Plugins: %s. Conflists: %s.\n' "${PLATFORM:-unknown}" "$ROOT$BIN_DIR" "$CONFS"
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
    conflist "$verb" "$@"
}

# How the running node is: 0 well, 3 not in force, 4 something is off.
node_status() {
    [ -z "$ROOT" ] || return 3
    "$TOOL" status ${JSON:+--json}
}

attachments() {
    "$TOOL" attachments --root "${ROOT:-/}" --cache-dir "$CACHE_DIR" ${JSON:+--json}
}

# Sets SOURCE, the program to put in place, and TOOL.
find_source() {
    SOURCE=$BINARY
    if [ -z "$SOURCE" ]; then
        SOURCE=$TARGET/release/symroute
        if [ -z "$DRY_RUN" ] && cargo_version >/dev/null; then
            build
        elif [ ! -e "$SOURCE" ]; then
            die "no program to install" "Run ./install.sh build, or give one by --binary FILE." "Nothing was changed."
        fi
    fi
    [ -f "$SOURCE" ] || die "$SOURCE: no such file" "Give a symroute program by --binary FILE." "Nothing was changed."
    VERSION=$("$SOURCE" --version 2>/dev/null) || VERSION=''
    case $VERSION in
        symroute\ *) ;;
        *) die "$SOURCE does not run here, or is not symroute" \
            "Is it of this processor, executable, and static? Give another one by --binary FILE." "Nothing was changed." ;;
    esac
    TOOL=$SOURCE
    case $TOOL in */*) ;; *) TOOL=./$TOOL ;; esac
}

put_binary() {
    if cmp -s "$SOURCE" "$BIN" && [ -x "$BIN" ]; then
        printf '%s is %s already\n' "$BIN" "$VERSION"
        return
    fi
    act "put $VERSION in place as $BIN" replace "$BIN" 755 cat "$SOURCE"
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
    put_binary
    if [ -n "$DRY_RUN" ]; then
        conflist_as_wished add --dry-run || true
    else
        conflist_as_wished add || [ $? -eq 3 ] || die "our entry could not be put in" \
            "See above. The program is in place and harmless; run this again, or: ./install.sh uninstall"
    fi
    node_up
    if has_systemd; then
        put_units
        enable_units
    elif [ -n "$BEFORE_PRIMARY" ]; then
        echo "note: no systemd, so no agent waits for the primary's conflist; run install again when it is there"
    fi
    [ -n "$DRY_RUN" ] || printf 'Installed. To look at it: %s status\n' "$BIN"
}

node_up() {
    [ -z "$NO_UP" ] && [ -z "$ROOT" ] || return 0
    act "have node state in force" quietly "$BIN" up --conf-dir "$CONF_DIR" ||
        die "the node state could not be made" "See above. Pods start all the same once that is put right; run this again."
}

# quietly COMMAND...: what it prints is of interest on failure only, and that goes to stderr.
quietly() {
    "$@" >/dev/null
}

upgrade_node() {
    [ -z "$ROLLBACK" ] || BINARY=$ROOT$STATE_DIR/previous
    [ -z "$ROLLBACK" ] || [ -e "$BINARY" ] || die "$BINARY: no such file: there was no upgrade" "Nothing was changed."
    find_source
    places
    [ -e "$BIN" ] || die "$BIN: no such file: symroute is not installed there" \
        "Run ./install.sh install, or give --bin-dir." "Nothing was changed."
    check_install
    if [ -z "$ROLLBACK" ] && ! cmp -s "$SOURCE" "$BIN"; then
        [ -d "$STATE" ] || act "make $STATE" mkdir -p "$STATE"
        act "keep the old one as $PREVIOUS" replace "$PREVIOUS" 755 cat "$BIN"
    fi
    put_binary
    ! has_systemd || [ ! -e "$UNITS/symroute-up.service" ] || put_units
    refresh_node
    [ -n "$DRY_RUN" ] || printf 'The program is %s now.\n' "$VERSION"
    [ ! -e "$PREVIOUS" ] || [ -n "$ROLLBACK" ] || echo "To go back: ./install.sh upgrade --rollback"
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
    [ "$code" -eq 3 ] || act "bring what is in force up to date" quietly "$BIN" up
}

# Sets TOOL: the program that is installed, or else another that knows how.
find_tool() {
    for TOOL in "$BIN" "$BINARY" "$TARGET/release/symroute"; do
        [ -x "$TOOL" ] && "$TOOL" --help 2>/dev/null | grep -q attachments && return
    done
    TOOL=''
}

uninstall_node() {
    places
    find_tool
    if [ -z "$TOOL" ]; then
        traces=$(ls -d "$BIN" "$STATE" "$UNITS"/symroute-* 2>/dev/null) || true
        [ -n "$traces" ] || { echo "symroute is not installed: nothing to do"; return; }
        die "no symroute program that can take the rest away: $(echo "$traces" | tr '\n' ' ')" \
            "Build one (./install.sh build) or give one by --binary FILE." "Nothing was changed."
    fi
    is_root || [ -n "$ROOT" ] || die "the node's directories and network: only root may" "Run: sudo ./install.sh uninstall"
    [ ! -e "$BIN" ] || writable "$ROOT$BIN_DIR" "the program is there" --bin-dir
    [ ! -e "$CONFS" ] || writable "$CONFS" "the runtime reads conflists there" --conf-dir
    check_removal
    refuse_while_needed "Nothing was changed."
    disable_units
    if [ -n "$DRY_RUN" ]; then conflist remove --dry-run || [ $? -eq 3 ]; else remove_entry; fi
    node_down
    remove_units
    # What symroute itself has written; a directory that has something else in it stays.
    delete "$STATE/conflist" "$PREVIOUS" "$STATE/.symroute.new"
    [ ! -d "$STATE" ] || [ -n "$(ls -A "$STATE")" ] || act "delete $STATE" rmdir "$STATE"
    delete "$ROOT/var/log/symroute.log" "$ROOT$BIN_DIR/.symroute.new" "$UNITS/.symroute.new"
    delete "$BIN"
    [ -n "$DRY_RUN" ] || echo "Uninstalled."
}

# Whether our entry can be taken out at all, before anything is changed.
check_removal() {
    code=0
    said=$(conflist remove --dry-run 2>&1) || code=$?
    [ "$code" -eq 0 ] || [ "$code" -eq 3 ] || die "$said" "Nothing was changed."
}

# Pods that were started with us need the program at their end: the runtime calls it for them. Not so
# one that is merely enrolled: containerd calls whom the conflist names by then, so after "conflist
# remove" pods end without our seeing it; and nobody calls us for those that the agent has adopted.
refuse_while_needed() {
    code=0
    pods=$(attachments) || code=$?
    [ "$code" -eq 0 ] || [ "$code" -eq 4 ] || die "could not tell which pods need symroute" "See above." "$1"
    pods=$(printf '%s\n' "$pods" | grep -v '^enrolled: ') || true # none
    [ -n "$pods" ] || return 0
    if [ -n "$FORCE" ]; then
        printf 'note: %s\n' "forced: these pods will not end cleanly while symroute is missing" "$pods"
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
        "See above. The program stays: the runtime calls it."
    sleep 1
    case $(conflist remove --dry-run 2>&1) in
        *"would be "*) die "$CONFS: somebody puts our entry back" \
            "An agent that runs elsewhere, as a DaemonSet? Stop it and run this again." ;;
    esac
    refuse_while_needed "A pod has started meanwhile. The conflist names us no longer; the program stays until then."
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
