# shellcheck shell=bash
# tests/install report: status --json, on nodes whose paths contain unusual characters. To be sourced.

# reported CODE FILTER ARGUMENTS...: "status --json" has to exit with CODE and to print one object that
# satisfies the jq filter, and nothing else.
reported() {
    local wanted=$1 filter=$2 status=0
    shift 2
    # shellcheck disable=SC2086 # a command and its word
    ${SHELLS[count++ % 2]} install.sh status --json "$@" >"$WORK/said" 2>"$WORK/complaint" || status=$?
    [[ $status -eq $wanted ]] || { echo "exit code $status"; cat "$WORK/complaint"; return 1; }
    [[ ! -s $WORK/complaint ]] || { cat "$WORK/complaint"; return 1; }
    jq -es "length == 1 and (.[0] | .version == 1 and ($filter))" "$WORK/said" >/dev/null
}

report() {
    local names='keys == ["binary", "conflist", "node", "off", "paths", "platform", "pods", "state", "tool", "units", "version"]'
    make_root
    ODD=$WORK/"a \"quoted\\ root"$'\t'$'\001'
    rm -rf "$ODD"
    mv "$ROOT_" "$ODD"
    works "a node without symroute, and no program to ask" without_a_program 3 \
        '.state == "not-installed" and .binary == null and .tool == null and .conflist == null and .pods == null'
    works "a node without symroute" reported 3 '.state == "not-installed" and .binary == null
        and .conflist.state == "missing" and .units == [] and '"$names" --root "$ODD" --binary "$SYMROUTE_BIN"
    works "its remedy is to install" not_installed --root "$ODD" --binary "$SYMROUTE_BIN"
    works "not to add the entry alone" grep -q "put it right with: sudo ./install.sh install$" "$WORK/said"
    run install --root "$ODD" --binary "$SYMROUTE_BIN" || { verdict install "$(cat "$WORK/said")"; return; }
    works "paths come through as they are" paths_are_whole
    works "a node with symroute" reported 0 '.state == "well" and .off == [] and .node == null
        and .conflist.state == "ready" and .binary.isSame and .binary.previous == null
        and .tool.isSame and .tool.previous == null
        and .pods.cached == [] and (.units | map(.enabled) == ["enabled", "enabled"]) and '"$names" \
        --root "$ODD" --binary "$SYMROUTE_BIN"
    cp tests/conflist/cases/flannel/before/10-flannel.conflist "$ODD/etc/cni/net.d/"
    works "without our entry" reported 4 '.state == "off" and .off == ["conflist"]' --root "$ODD"
    : >"$ODD/opt/cni/bin/symroute"
    works "with a program that does not run" reported 4 '.off == ["binary", "conflist"]
        and .binary.version == null' --root "$ODD" --binary "$SYMROUTE_BIN"
    cp "$SYMROUTE_BIN" "$ODD/opt/cni/bin/symroute"
    cat >"$ODD/usr/local/bin/symroutectl" <<'TEXT'
#!/bin/sh
printf '%s\n' 'attachments "\'
TEXT
    chmod +x "$ODD/usr/local/bin/symroutectl"
    works "with a program that talks nonsense" reported 4 '(.conflist.error | contains("\"\\"))
        and (.pods.error | length > 0) and .off == ["tool", "conflist", "pods"]' --root "$ODD"
    rm -rf "$ODD"
    works "--json with another command" wrong_with_json
}

# Asks for a status without any built program.
without_a_program() {
    CARGO_TARGET_DIR=$WORK/nothing reported "$@" --root "$ODD"
}

paths_are_whole() {
    reported 0 true --root "$ODD" --binary "$SYMROUTE_BIN" &&
        [[ $(jq -r .paths.binary "$WORK/said") == "$ODD/opt/cni/bin/symroute" &&
        $(jq -r .paths.tool "$WORK/said") == "$ODD/usr/local/bin/symroutectl" ]]
}

wrong_with_json() {
    local status=0
    run install --json || status=$?
    [[ $status -eq 2 ]] && grep -q -- --help "$WORK/said"
}
