# shellcheck shell=sh
# Changes of files that a kill can't leave half done. POSIX sh, to be sourced after common.sh.

# act TEXT COMMAND...: prints the text and runs the command; with --dry-run only prints.
act() {
    if [ -n "$DRY_RUN" ]; then
        printf 'would %s\n' "$1"
        return
    fi
    printf '%s\n' "$1"
    shift
    "$@"
}

# replace TO MODE COMMAND...: replaces TO by the output of the command. A program that opens or runs TO
# gets the whole old file or the whole new one.
replace() {
    to=$1 mode=$2
    temporary=$(dirname "$to")/.symroute.new
    shift 2
    "$@" >"$temporary"
    chmod "$mode" "$temporary"
    sync "$temporary"
    mv -f "$temporary" "$to"
}

# writable DIRECTORY WHAT OPTION: dies if no file can be created there. Tries it, because for root "-w" may
# succeed on a read-only file system.
writable() {
    [ -d "$1" ] || die "$1: no such directory; $2" \
        "If it is elsewhere, name it by $3. $(other_directory)" "Nothing was changed."
    if [ -w "$1" ]; then
        [ -z "$DRY_RUN" ] || return 0
        # shellcheck disable=SC2188 # makes a file
        (>"$1/.symroute.new") 2>/dev/null && rm -f "$1/.symroute.new" && return
    fi
    die "$1: can't be written (a read-only file system, or no rights); $2" \
        "Run this as root; if it is elsewhere, name it by $3. $(other_directory)" "Nothing was changed."
}

# existing PATH: prints the path or the nearest directory above it that exists.
existing() {
    path=$1
    while [ ! -e "$path" ]; do path=$(dirname "$path"); done
    printf '%s\n' "$path"
}

# delete FILE...: deletes the files and directories that exist.
delete() {
    for file in "$@"; do
        if [ -e "$file" ] || [ -L "$file" ]; then act "delete $file" rm -rf "$file"; fi
    done
}

hash_of() {
    cat "$@" 2>/dev/null | sha256sum | cut -d ' ' -f 1
}
