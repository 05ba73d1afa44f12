# shellcheck shell=sh
# Reports what is installed on a node and what is wrong with it, as text and as JSON. POSIX sh, to be
# sourced after node.sh.

# Version of the JSON report, raised when a key changes its meaning or is removed.
STATUS_VERSION=1

# row NAME TEXT: prints a row whose text may have several lines.
row() {
    printf '%s\n' "$2" | sed "1s/^/$(printf '%-10s' "$1")/;2,\$s/^/          /"
}

# Exit codes: 0 healthy, 3 not installed, 4 something is wrong.
status_node() {
    result=0 OFF=''
    if [ -n "$JSON" ]; then places >/dev/null; else places; fi
    find_tool
    look_at_binary
    look_at_tool
    look_at_conflist
    look_at_units
    look_at_node
    look_at_pods
    if [ -n "$JSON" ]; then status_json; else status_rows; fi
    return "$result"
}

# off PART: notes that something is wrong with a part. The exit code 3 (not installed) stays.
off() {
    OFF="$OFF $1"
    [ "$result" -eq 3 ] || result=4
}

# Sets BIN_VERSION, BIN_HASH and OTHER, the plugin that an upgrade would install.
look_at_binary() {
    BIN_VERSION='' BIN_HASH='' OTHER=''
    [ -e "$BIN" ] || { result=3; return; }
    BIN_HASH=$(hash_of "$BIN")
    # A shell runs an empty file without an error, so the version counts.
    BIN_VERSION=$("$BIN" --version 2>/dev/null) || BIN_VERSION=''
    [ -n "$BIN_VERSION" ] || off binary
    for other in "$BINARY" "$PROGRAMS/symroute"; do
        [ -n "$OTHER" ] || [ ! -e "$other" ] || OTHER=$other
    done
}

# Sets CTL_VERSION, CTL_HASH, OTHER_TOOL (the tool that an upgrade would install) and TOOL_STATE: "well" or
# the fault.
look_at_tool() {
    CTL_VERSION='' CTL_HASH='' OTHER_TOOL='' TOOL_STATE=well
    [ -n "$BIN_HASH" ] || [ -e "$CTL" ] || return 0
    if [ ! -e "$CTL" ]; then
        TOOL_STATE="in the plugin"
        is_both "$BIN" || { TOOL_STATE="not there; ./install.sh install puts it in place"; off tool; }
        return
    fi
    CTL_HASH=$(hash_of "$CTL")
    CTL_VERSION=$("$CTL" --version 2>/dev/null) || CTL_VERSION=''
    for other in "$TOOL_FILE" "${OTHER:+${OTHER%/*}/symroutectl}" "$PROGRAMS/symroutectl"; do
        [ -n "$OTHER_TOOL" ] || [ ! -e "$other" ] || OTHER_TOOL=$other
    done
    if [ -z "$CTL_VERSION" ]; then
        TOOL_STATE="does not run"
    elif [ -n "$BIN_VERSION" ] && [ "${CTL_VERSION#* }" != "${BIN_VERSION#* }" ]; then
        TOOL_STATE="not of the plugin's version, ${BIN_VERSION#* }; ./install.sh upgrade puts both right"
    fi
    [ "$TOOL_STATE" = well ] || off tool
}

# said COMMAND [ARGUMENT...]: runs the command and sets SAID to its output and code to its exit code. With
# --json, output that is not a report becomes {"error": ...}.
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
    CONFLIST="unknown: no symroutectl to ask; give one by --tool FILE"
    [ -z "$JSON" ] || CONFLIST=null
    [ -n "$TOOL" ] || return 0
    said conflist check
    CONFLIST=$SAID
    # Before an install, an entry alone would name a missing plugin.
    [ -n "$JSON$BIN_HASH" ] ||
        CONFLIST=$(printf '%s\n' "$SAID" | sed 's|: symroutectl conflist add$|: sudo ./install.sh install|')
    # With an entry but without the plugin, no pod starts.
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
        # symroute-conflist.service runs only after a change of a conflist.
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

# described FILE VERSION HASH OTHER: prints one line about an installed program.
described() {
    text="$1: ${2:-does not run}, sha256 $(printf '%.16s' "$3")..."
    if [ -n "$4" ]; then
        if cmp -s "$4" "$1"; then text="$text, as $4"; else text="$text, not as $4"; fi
    fi
    printf '%s\n' "$text"
}

status_rows() {
    text="$BIN: not there"
    [ -z "$BIN_HASH" ] || text=$(described "$BIN" "$BIN_VERSION" "$BIN_HASH" "$OTHER")
    row binary "$text"
    if [ -n "$CTL_HASH" ]; then
        text=$(described "$CTL" "$CTL_VERSION" "$CTL_HASH" "$OTHER_TOOL")
        [ "$TOOL_STATE" = well ] || text="$text
$TOOL_STATE"
        row tool "$text"
    elif [ -n "$BIN_HASH" ]; then
        row tool "$CTL: $TOOL_STATE"
    fi
    row conflist "$CONFLIST"
    [ -n "$TOOL" ] || return 0
    row units "${UNITS_SEEN:-none}"
    [ -n "$ROOT" ] || row node "$NODE"
    row pods "${PODS:-none}"
}

# Prints a sed script that escapes control characters except newline as \u00XX, as JSON requires.
control_characters() {
    i=1
    while [ "$i" -lt 32 ]; do
        [ "$i" -eq 10 ] || printf 's/%b/\\\\u%04x/g\n' "\\0$(printf %o "$i")" "$i"
        i=$((i + 1))
    done
}

# json_string TEXT: prints the text as a JSON string.
json_string() {
    printf '%s\n' "$1" | LC_ALL=C sed -e ':a' -e '$!N' -e '$!ba' -e 's/[\\"]/\\&/g' \
        -e "$(control_characters)" -e 's/\n/\\n/g' -e 's/^/"/' -e 's/$/"/'
}

# json_or_null TEXT: prints the text as a JSON string, or null if it is empty.
json_or_null() {
    if [ -n "$1" ]; then json_string "$1"; else printf null; fi
}

# json_words WORD...: prints the words as a JSON list.
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

# json_program FILE VERSION HASH KEPT OTHER: prints a JSON object about a program, or null without HASH.
json_program() {
    [ -n "$3" ] || { printf null; return; }
    printf '{"version": %s, "sha256": "%s", "previous": %s' "$(json_or_null "$2")" \
        "$3" "$(json_or_null "$([ ! -e "$4" ] || hash_of "$4")")"
    if [ -n "$5" ]; then
        same=false
        ! cmp -s "$5" "$1" || same=true
        printf ', "comparedWith": %s, "isSame": %s' "$(json_string "$5")" "$same"
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
"paths": {"binary": $(json_string "$BIN"), "tool": $(json_string "$CTL"), "conflists": $(json_string "$CONFS"), "state": $(json_string "$STATE"), "units": $(json_string "$UNITS")},
"binary": $(json_program "$BIN" "$BIN_VERSION" "$BIN_HASH" "$PREVIOUS" "$OTHER"),
"tool": $(json_program "$CTL" "$CTL_VERSION" "$CTL_HASH" "$PREVIOUS_TOOL" "$OTHER_TOOL"),
"units": $(json_units),
"conflist": $CONFLIST,
"node": $NODE,
"pods": $PODS
}
TEXT
}
