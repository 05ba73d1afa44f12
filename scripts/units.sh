# shellcheck shell=sh
# Installs and removes symroute's systemd units. POSIX sh, to be sourced after files.sh.

# All units in the order in which uninstall stops them: the path would start its service again, and the
# service restarts symroute-up.service.
ALL_UNITS="symroute-conflist.path symroute-conflist.service symroute-agent.service symroute-up.service"

# Prints the units to install.
units() {
    if [ -n "$NO_AGENT" ]; then
        echo symroute-up.service symroute-conflist.service symroute-conflist.path
    else
        echo symroute-up.service symroute-agent.service
    fi
}

# Prints the units to enable: all except the service that the path unit starts.
enabled_units() {
    units | sed 's/symroute-conflist.service //'
}

has_systemd() {
    [ -z "$NO_SYSTEMD" ] || return 1
    if [ -n "$ROOT" ]; then
        [ -d "$ROOT/usr/lib/systemd/system" ] || [ -d "$ROOT/lib/systemd/system" ]
    else
        [ -d /run/systemd/system ]
    fi
}

# systemd ARGUMENT...: runs systemctl on this node, or on the files below $ROOT.
systemd() {
    systemctl ${ROOT:+"--root=$ROOT"} "$@"
}

# unit NAME: prints the unit with the directories of this node. Units call the plugin, which runs the tool. So
# they stay valid through an upgrade from one program to two, and through its rollback.
unit() {
    case $STATE_DIR in
        /var/lib/*) state=StateDirectory=${STATE_DIR#/var/lib/} ;;
        *) state=ReadWritePaths=$STATE_DIR ;;
    esac
    sed -e "s|/opt/cni/bin|$BIN_DIR|g" -e "s|/etc/cni/net.d|$CONF_DIR|g" \
        -e "s|/var/lib/cni/results|$CACHE_DIR|g" -e "s|/var/lib/symroute|$STATE_DIR|g" \
        -e "s|^StateDirectory=symroute$|$state|" "conf/systemd/$1" | at_tool | at_home
}

# Adds --tool-dir to the unit's PATH, if the plugin would not look there.
at_tool() {
    case $TOOL_DIR in
        /usr/local/bin | "$BIN_DIR") cat ;;
        *) sed "s|^\[Service\]\$|&\\
Environment=PATH=$TOOL_DIR:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin|" ;;
    esac
}

# Makes /home or /root visible to the unit if a program is there.
at_home() {
    case $BIN_DIR:$TOOL_DIR in
        /home/* | *:/home/* | /root/* | *:/root/*) sed 's|^ProtectHome=yes$|ProtectHome=read-only|' ;;
        *) cat ;;
    esac
}

# Updates the unit files. NEW_UNITS is "yes" if one has changed.
put_units() {
    NEW_UNITS=''
    for name in $(units); do
        if [ "$(unit "$name")" = "$(cat "$UNITS/$name" 2>/dev/null)" ]; then continue; fi
        NEW_UNITS=yes
        act "write $UNITS/$name" replace "$UNITS/$name" 644 unit "$name"
    done
    [ -z "$NEW_UNITS" ] || [ -n "$ROOT" ] || act "have systemd read them" systemd daemon-reload
}

# Enables the units, and starts them unless --root or --no-up is given.
enable_units() {
    for name in $(enabled_units); do
        if [ -n "$ROOT" ] || [ -n "$NO_UP" ]; then
            act "enable $name" systemd enable "$name"
        else
            act "enable and start $name" systemd enable --now "$name"
        fi
    done
}

# Dies if systemctl can't reach systemd, for example in a container without a bus.
check_systemd() {
    [ -z "$ROOT" ] || return 0
    code=0
    said=$(LC_ALL=C systemctl show --property=Version 2>&1) || code=$?
    [ "$code" -eq 0 ] || die "systemctl can't reach systemd: $(printf '%s\n' "$said" | tail -n 1)" "$@" "Nothing was changed."
}

# Succeeds if unit files of symroute are there.
has_units() {
    for name in $ALL_UNITS; do
        [ ! -e "$UNITS/$name" ] || return 0
    done
    return 1
}

# With --no-systemd, the operator stops the agent.
disable_units() {
    [ -z "$NO_SYSTEMD" ] || return 0
    for name in $ALL_UNITS; do
        [ -e "$UNITS/$name" ] || continue
        if [ -n "$ROOT" ]; then
            act "disable $name" systemd disable "$name"
        else
            act "stop and disable $name" systemd disable --now "$name"
        fi
    done
}

remove_units() {
    has_units || return 0
    for name in $ALL_UNITS; do
        [ -e "$UNITS/$name" ] || continue
        # systemd would remember a unit that has failed or was stopped while it ran.
        [ -n "$DRY_RUN$ROOT$NO_SYSTEMD" ] || systemd reset-failed "$name" 2>/dev/null || true
        # The links are what "systemctl disable" deletes.
        [ -z "$NO_SYSTEMD" ] || delete "$UNITS"/*.wants/"$name"
        # They are here if the units are in another directory.
        [ -z "$NO_SYSTEMD" ] || [ "$UNITS" = "$ROOT/etc/systemd/system" ] ||
            delete "$ROOT"/etc/systemd/system/*.wants/"$name"
        delete "$UNITS/$name"
    done
    [ -n "$ROOT$NO_SYSTEMD" ] || act "have systemd forget them" systemd daemon-reload
}

unit_enabled() {
    systemd is-enabled "$1" 2>/dev/null || true
}

# Prints nothing with --root.
unit_active() {
    [ -n "$ROOT" ] || systemd is-active "$1" 2>/dev/null || true
}

# Prints one line for each installed unit.
show_units() {
    for name in $ALL_UNITS; do
        [ -e "$UNITS/$name" ] || continue
        enabled=$(unit_enabled "$name") active=$(unit_active "$name")
        printf '%s: %s%s\n' "$name" "${enabled:-unknown}" "${active:+, $active}"
    done
}
