#!/bin/sh
# first-release.sh [NAME]: builds an old release from this repository's history, for tests of upgrades, and
# prints the program's path. tests/NAME has the commit: first-release, or one-program, the last release in
# which one program was plugin and tool.
set -eu
cd "$(dirname "$0")/.."
. scripts/common.sh

name=${1:-first-release}
commit=$(cat "tests/$name")
target=${CARGO_TARGET_DIR:-$PWD/target}/$name
program=$target/build/debug/symroute
# The program does not report its commit, so a file beside it records the commit.
if [ "$(cat "$target/commit" 2>/dev/null)" != "$commit" ] || [ ! -x "$program" ]; then
    repository() { git -c safe.directory='*' "$@"; }
    repository cat-file -e "$commit^{commit}" 2>/dev/null ||
        die "commit $commit of tests/$name is not in this clone" \
            "In a shallow clone: git fetch --unshallow. Or name its program by SYMROUTE_OLD (one-program: SYMROUTE_ONE)."
    need_cargo >&2
    rm -rf "$target/source"
    as_owner mkdir -p "$target/source"
    repository archive "$commit" | as_owner tar -x -C "$target/source"
    (
        cd "$target/source"
        CARGO_TARGET_DIR=$target/build as_owner cargo build --quiet --locked --bin symroute >&2
    ) || die "commit $commit of tests/$name does not build"
    printf '%s\n' "$commit" | as_owner tee "$target/commit" >/dev/null
fi
printf '%s\n' "$program"
