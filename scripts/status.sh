# shellcheck shell=sh
# What is installed on a node and how it fares, for people and for programs. POSIX sh, to be sourced
# after node.sh.

# Raised when keys of the JSON report change their meaning or go away.
STATUS_VERSION=1

# One row: NAME, and the lines of TEXT.
row() {
    printf '%s\n' "$2" | sed "1s/^/$(printf '%-10s' "$1")/;2,\$s/^/          /"
}

hash_of() {
    sha256sum <"$1" | cut -d ' ' -f 1
}

# Exit code 0 where all is well, 3 where symroute is not installed, 4 where something is off.
status_node() {
    result=0 OFF=''
    if [ -n "$JSON" ]; then places >/dev/null; else places; fi
    find_tool
    look_at_binary
    look_at_conflist
    look_at_units
    look_at_node
    look_at_pods
    if [ -n "$JSON" ]; then status_json; else status_rows; fi
    return "$result"
}

# off PART: something is wrong with it. Where there is no program, that is all there is to say.
off() {
    OFF="$OFF $1"
    [ "$result" -eq 3 ] || result=4
}

# Sets BIN_VERSION, BIN_HASH, and OTHER: the program that would be put in its place.
look_at_binary() {
    BIN_VERSION='' BIN_HASH='' OTHER=''
    [ -e "$BIN" ] || { result=3; return; }
    BIN_HASH=$(hash_of "$BIN")
    # A shell takes an empty file for a program that does nothing.
    BIN_VERSION=$("$BIN" --version 2>/dev/null) || BIN_VERSION=''
    [ -n "$BIN_VERSION" ] || off binary
    for other in "$BINARY" "$TARGET/release/symroute"; do
        [ -n "$OTHER" ] || [ ! -e "$other" ] || OTHER=$other
    done
}

# said COMMAND [ARGUMENT...]: sets SAID to what it prints, and code. With --json, what is no report
# becomes {"error": ...}.
said() {
    code=0
    if [ -z "$JSON" ]; then
        SAID=$("$@" 2>&1) || code=$?
    elif [ -z "$TOOL" ]; then
        SAID=null
    else
        SAID=$("$@" 2>&1) || code=$?
        case $code:$SAID in
            [034]:'{'*) ;;
            *) code=1 SAID="{\"error\": $(json_string "$SAID")}" ;;
        esac
    fi
}

look_at_conflist() {
    CONFLIST="unknown: no symroute program to ask; give one by --binary FILE"
    [ -z "$JSON" ] || CONFLIST=null
    [ -n "$TOOL" ] || return 0
    said conflist check
    CONFLIST=$SAID
    # An entry without a program: no pod starts.
    case $code:$result in
        0:3) result=4 OFF="$OFF binary" ;;
        0:* | 3:3) ;;
        *) off conflist ;;
    esac
}

look_at_units() {
    UNITS_SEEN=$(show_units)
    for name in $ALL_UNITS; do
        [ -e "$UNITS/$name" ] || continue
        # One of them runs only when a conflist has changed.
        case $name:$(unit_active "$name") in
            *:failed) off units ;;
            symroute-conflist.service:*) ;;
            *:inactive) off units ;;
        esac
    done
}

look_at_node() {
    NODE=''
    [ -z "$JSON" ] || NODE=null
    [ -n "$TOOL" ] && [ -z "$ROOT" ] || return 0
    said node_status
    NODE=$SAID
    [ "$code" -eq 0 ] || [ "$code" -eq 3 ] || off node
}

look_at_pods() {
    PODS=''
    [ -z "$JSON" ] || PODS=null
    [ -n "$TOOL" ] || return 0
    said attachments
    PODS=$SAID
    [ "$code" -eq 0 ] || [ "$code" -eq 4 ] || off pods
}

status_rows() {
    text="$BIN: not there"
    if [ -n "$BIN_HASH" ]; then
        text="$BIN: ${BIN_VERSION:-does not run}, sha256 $(printf '%.16s' "$BIN_HASH")..."
        if [ -n "$OTHER" ]; then
            if cmp -s "$OTHER" "$BIN"; then text="$text, as $OTHER"; else text="$text, not as $OTHER"; fi
        fi
    fi
    row binary "$text"
    row conflist "$CONFLIST"
    [ -n "$TOOL" ] || return 0
    row units "${UNITS_SEEN:-none}"
    [ -n "$ROOT" ] || row node "$NODE"
    row pods "${PODS:-none}"
}

# For sed: control characters but the newline become \u00XX. JSON wants that.
control_characters() {
    i=1
    while [ "$i" -lt 32 ]; do
        [ "$i" -eq 10 ] || printf 's/%b/\\\\u%04x/g\n' "\\0$(printf %o "$i")" "$i"
        i=$((i + 1))
    done
}

# json_string TEXT: it as a string of JSON.
json_string() {
    printf '%s\n' "$1" | LC_ALL=C sed -e ':a' -e '$!N' -e '$!ba' -e 's/[\\"]/\\&/g' \
        -e "$(control_characters)" -e 's/\n/\\n/g' -e 's/^/"/' -e 's/$/"/'
}

# The same, or null where there is nothing.
json_or_null() {
    if [ -n "$1" ]; then json_string "$1"; else printf null; fi
}

# json_words WORD...: a list.
json_words() {
    separator=''
    printf '['
    for word in "$@"; do
        printf '%s%s' "$separator" "$(json_string "$word")"
        separator=', '
    done
    printf ']'
}

json_units() {
    separator=''
    printf '['
    for name in $ALL_UNITS; do
        [ -e "$UNITS/$name" ] || continue
        printf '%s{"name": "%s", "enabled": %s, "active": %s}' "$separator" "$name" \
            "$(json_or_null "$(unit_enabled "$name")")" "$(json_or_null "$(unit_active "$name")")"
        separator=', '
    done
    printf ']'
}

json_binary() {
    [ -n "$BIN_HASH" ] || { printf null; return; }
    printf '{"version": %s, "sha256": "%s", "previous": %s' "$(json_or_null "$BIN_VERSION")" \
        "$BIN_HASH" "$(json_or_null "$([ ! -e "$PREVIOUS" ] || hash_of "$PREVIOUS")")"
    if [ -n "$OTHER" ]; then
        same=false
        ! cmp -s "$OTHER" "$BIN" || same=true
        printf ', "comparedWith": %s, "isSame": %s' "$(json_string "$OTHER")" "$same"
    fi
    printf '}'
}

status_json() {
    case $result in 0) state=well ;; 3) state=not-installed ;; *) state=off ;; esac
    # shellcheck disable=SC2086 # words of ours
    off_=$(json_words $OFF)
    # shellcheck disable=SC2153 # places sets STATE
    cat <<TEXT
{
"version": $STATUS_VERSION,
"state": "$state",
"off": $off_,
"platform": $(json_or_null "$PLATFORM"),
"paths": {"binary": $(json_string "$BIN"), "conflists": $(json_string "$CONFS"), "state": $(json_string "$STATE"), "units": $(json_string "$UNITS")},
"binary": $(json_binary),
"units": $(json_units),
"conflist": $CONFLIST,
"node": $NODE,
"pods": $PODS
}
TEXT
}
