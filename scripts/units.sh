# shellcheck shell=sh
# symroute's systemd units on a node. POSIX sh, to be sourced after files.sh.

# In the order in which they are stopped: the path would start its service again, and the service
# restarts what holds node state.
ALL_UNITS="symroute-conflist.path symroute-conflist.service symroute-agent.service symroute-up.service"

# The units that are wanted.
units() {
    if [ -n "$NO_AGENT" ]; then
        echo symroute-up.service symroute-conflist.service symroute-conflist.path
    else
        echo symroute-up.service symroute-agent.service
    fi
}

# Those of them that a boot starts by itself.
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

# systemctl of this node, or on the files of another.
systemd() {
    systemctl ${ROOT:+"--root=$ROOT"} "$@"
}

# unit NAME: its text with the directories of this node. Units call the plugin, which becomes the tool:
# so they are right before and after an upgrade from one program to two, and a rollback.
unit() {
    case $STATE_DIR in
        /var/lib/*) state=StateDirectory=${STATE_DIR#/var/lib/} ;;
        *) state=ReadWritePaths=$STATE_DIR ;;
    esac
    sed -e "s|/opt/cni/bin|$BIN_DIR|g" -e "s|/etc/cni/net.d|$CONF_DIR|g" \
        -e "s|/var/lib/cni/results|$CACHE_DIR|g" -e "s|/var/lib/symroute|$STATE_DIR|g" \
        -e "s|^StateDirectory=symroute$|$state|" "conf/systemd/$1" | at_tool | at_home
}

# Where the tool is where the plugin would not look for it.
at_tool() {
    case $TOOL_DIR in
        /usr/local/bin | "$BIN_DIR") cat ;;
        *) sed "s|^\[Service\]\$|&\\
Environment=PATH=$TOOL_DIR:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin|" ;;
    esac
}

# A program below /home can't be run by a unit that doesn't see it.
at_home() {
    case $BIN_DIR:$TOOL_DIR in
        /home/* | *:/home/* | /root/* | *:/root/*) sed 's|^ProtectHome=yes$|ProtectHome=read-only|' ;;
        *) cat ;;
    esac
}

# Brings the unit files up to date. NEW_UNITS tells whether one has changed.
put_units() {
    NEW_UNITS=''
    for name in $(units); do
        if [ "$(unit "$name")" = "$(cat "$UNITS/$name" 2>/dev/null)" ]; then continue; fi
        NEW_UNITS=yes
        act "write $UNITS/$name" replace "$UNITS/$name" 644 unit "$name"
    done
    [ -z "$NEW_UNITS" ] || [ -n "$ROOT" ] || act "have systemd read them" systemd daemon-reload
}

# Starts them with each boot, and now unless another node's files are worked on.
enable_units() {
    for name in $(enabled_units); do
        if [ -n "$ROOT" ] || [ -n "$NO_UP" ]; then
            act "enable $name" systemd enable "$name"
        else
            act "enable and start $name" systemd enable --now "$name"
        fi
    done
}

disable_units() {
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
    gone=''
    for name in $ALL_UNITS; do
        [ -e "$UNITS/$name" ] || continue
        gone=yes
        # One that failed once, or was ended while it ran, would be remembered.
        [ -n "$DRY_RUN$ROOT" ] || systemd reset-failed "$name" 2>/dev/null || true
        delete "$UNITS/$name"
    done
    [ -z "$gone" ] || [ -n "$ROOT" ] || act "have systemd forget them" systemd daemon-reload
}

unit_enabled() {
    systemd is-enabled "$1" 2>/dev/null || true
}

# Empty on a node that does not run here.
unit_active() {
    [ -n "$ROOT" ] || systemd is-active "$1" 2>/dev/null || true
}

# One line for each unit that is there, for people.
show_units() {
    for name in $ALL_UNITS; do
        [ -e "$UNITS/$name" ] || continue
        enabled=$(unit_enabled "$name") active=$(unit_active "$name")
        printf '%s: %s%s\n' "$name" "${enabled:-unknown}" "${active:+, $active}"
    done
}
