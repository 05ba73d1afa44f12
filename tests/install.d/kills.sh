# shellcheck shell=bash
# tests/install kills: kills install.sh after each change of a file. To be sourced.

readonly INSTALLED=(/etc/cni /opt/cni /usr/local/bin/symroutectl /usr/local/bin/.symroute.new /etc/systemd/system
    /var/lib/symroute)

# System calls that change the set of files. strace delays each before and after, so that a kill falls
# between two of them.
readonly CHANGES=mkdir,mkdirat,rmdir,rename,renameat,renameat2,unlink,unlinkat,symlink,symlinkat,chmod,fchmod,fchmodat,fchown,fsync,syncfs
# System calls that change the content of files. Only writes to the node's files count.
readonly WRITES=write,pwrite64,writev,copy_file_range,sendfile,splice,ftruncate

# No other program rewrites the conflist here, so install.sh need not wait for that.
readonly NO_SLEEP=inject=clock_nanosleep:retval=0

# counts LINE: whether this line of strace is a change that counts. Of consecutive writes, only the first,
# second, fourth, eighth and so on count, because a copy of a program takes dozens.
counts() {
    case $1 in
        *' = -1 '* | *'/dev/'* | *' --- '* | *' +++ '*) return 1 ;;
        *openat*O_CREAT* | *openat*O_TRUNC* | *creat\(*) ;;
        *openat*) return 1 ;;
        *write* | *copy_file_range* | *sendfile* | *splice* | *ftruncate*)
            case $1 in
                *'</etc/cni/'* | *'</opt/cni/'* | *'</usr/local/bin/'* | *'</etc/systemd/system/'* | *'</var/lib/symroute/'*) ;;
                *) return 1 ;;
            esac
            IN_A_ROW=$((IN_A_ROW + 1))
            (((IN_A_ROW & (IN_A_ROW - 1)) == 0))
            return
            ;;
    esac
    IN_A_ROW=0
}

# killed_after N COMMAND...: runs the command and kills its process group after its Nth change of a file.
# Fails if the command ends earlier. $LAST is the last change.
killed_after() {
    local wanted=$1 n=0 pid line status=0
    shift
    IN_A_ROW=0
    rm -f "$WORK/fifo"
    mkfifo "$WORK/fifo"
    setsid strace -f -qq -y -s 0 -o "$WORK/fifo" -e "trace=$CHANGES,$WRITES,openat,creat,clock_nanosleep" \
        -e "inject=$CHANGES:delay_enter=4000:delay_exit=4000" -e "inject=$WRITES:delay_exit=2000" \
        -e "$NO_SLEEP" "$@" >"$WORK/said" 2>&1 &
    pid=$!
    while read -r line; do
        case $line in *nanosleep*) continue ;; esac
        counts "$line" || continue
        n=$((n + 1))
        LAST=$line
        [[ $n -lt $wanted ]] || { kill -KILL -- "-$pid" 2>/dev/null; break; }
    done <"$WORK/fifo"
    wait "$pid" 2>/dev/null || status=$?
    [[ $status -eq 137 ]]
}

save() {
    rm -rf "$WORK/saved"
    mkdir "$WORK/saved"
    tar -c --ignore-failed-read -f "$WORK/saved/tar" "${INSTALLED[@]}" 2>/dev/null || true
}

restore() {
    rm -rf "${INSTALLED[@]}"
    tar -x -C / -f "$WORK/saved/tar"
}

# The files that count as the final result. The journal records times and kills, so it is left out.
result() {
    tree "${INSTALLED[@]}" | grep -v /journal
}

# After a kill: conflists are complete, the program that they name exists, and a pod starts and ends.
node_holds() {
    local file
    for file in "$NETD"/*; do
        jq -e .plugins "$file" >/dev/null || { echo "$file is not whole"; return 1; }
    done
    if entry_is_there; then
        /opt/cni/bin/symroute --version || return 1
    fi
    ip netns add probe
    "$WORK/libcni" add "$NETD" lab probe /run/netns/probe || return 1
    "$WORK/libcni" del "$NETD" lab probe /run/netns/probe || return 1
    ip netns del probe
}

# As long as plugin and entry exist, the plugin finds its tool when a unit calls it.
tool_is_there() {
    local status=0
    [[ -e /opt/cni/bin/symroute ]] && entry_is_there || return 0
    env PATH=/usr/bin:/bin /opt/cni/bin/symroute conflist check || status=$?
    [[ $status -eq 0 ]]
}

# completely ARGUMENTS...: runs install.sh, or a program given by its path, to its end.
completely() {
    [[ $1 == */* ]] || { run "$@"; return; }
    strace -f -qq -o /dev/null -e "$NO_SLEEP" "$@" >"$WORK/said" 2>&1
}

# command_of N ARGUMENTS...: sets COMMAND to install.sh in the shell of turn N, or to a program given by its
# path.
command_of() {
    # shellcheck disable=SC2206 # a command and its word
    COMMAND=(${SHELLS[$1 % 2]} install.sh "${@:2}")
    [[ $2 != */* ]] || COMMAND=("${@:2}")
}

# kill_everywhere NAME ARGUMENTS...: kills the command after each of its changes, and restores the initial
# state each time.
kill_everywhere() {
    local name=$1 n=1
    shift
    save
    completely "$@" || { verdict "$name" "$(cat "$WORK/said")"; return; }
    result >"$WORK/wanted"
    restore
    while command_of "$n" "$@" && killed_after "$n" "${COMMAND[@]}"; do
        { node_holds && tool_is_there; } >"$WORK/out" 2>&1 ||
            { verdict "$name, killed after change $n" "$LAST: $(cat "$WORK/out")"; restore; return; }
        completely "$@" || { verdict "$name after a kill at $n" "$LAST: $(cat "$WORK/said")"; restore; return; }
        diff "$WORK/wanted" <(result) >"$WORK/out" ||
            { verdict "$name after a kill at $n" "$LAST: $(cat "$WORK/out")"; restore; return; }
        restore
        n=$((n + 1))
    done
    if [[ $n -lt 10 ]]; then
        verdict "$name" "only $n changes: $(cat "$WORK/said")"
    else
        verdict "$name, killed after each change and run again" ok "$((n - 1)) kills"
        echo "    install.sh killed at $((n - 1)) changes"
    fi
}

# refused_everywhere NAME SETTINGS SPOIL MEND: installs with settings that can't work on this node. "ip
# SPOIL" makes them impossible, and "ip MEND" reverts that.
refused_everywhere() {
    local spoil mend
    read -r -a spoil <<<"$3"
    read -r -a mend <<<"$4"
    echo "$2" >"$WORK/entry"
    [[ ${#spoil[@]} -eq 0 ]] || ip "${spoil[@]}"
    save
    strike_refused "$1"
    restore
    [[ ${#mend[@]} -eq 0 ]] || ip "${mend[@]}"
}

# install.sh refuses before it installs anything, so the kills fall between the changes of its checks. No
# file of another program may change, and a pod has to start.
strike_refused() {
    local name=$1 n=1 before
    before=$(tree "$NETD")
    while command_of "$n" install --binary "$SYMROUTE_BIN" --config "$WORK/entry" && killed_after "$n" "${COMMAND[@]}"; do
        { node_holds && diff <(echo "$before") <(tree "$NETD" | grep -v '/\.symroute\.new'); } >"$WORK/out" 2>&1 ||
            { verdict "$name, killed after change $n" "$LAST: $(cat "$WORK/out")"; return; }
        restore
        n=$((n + 1))
    done
    if ! grep -q "no pod could start" "$WORK/said" || ! diff <(echo "$before") <(tree "$NETD") || [[ -e /opt/cni/bin/symroute ]]; then
        verdict "$name" "not refused: $(cat "$WORK/said")"
    elif [[ $n -lt 3 ]]; then
        verdict "$name" "only $n changes: $(cat "$WORK/said")"
    else
        verdict "$name, killed at each change of a file" ok "$((n - 1)) kills"
        echo "    install.sh killed at $((n - 1)) changes"
    fi
}

kills() {
    export NO_START=yes
    printf '#!/bin/sh\n' >"$WORK/bin/sleep"
    chmod +x "$WORK/bin/sleep"
    conflist bridge bare
    refused_everywhere "install with a name that fits no NIC" '{"type": "symroute", "uplinks": ["wan*"]}' "" ""
    local right='{"type": "symroute", "uplinks": ["eth0", "eth1"]}'
    refused_everywhere "install beside a rule at 401" "$right" "rule add pref 401 from 192.0.2.1 lookup main" "rule del pref 401"
    refused_everywhere "install beside Cilium's rule" "$right" "rule add pref 9 fwmark 0x200/0xf00 lookup 2004" "rule del pref 9"
    refused_everywhere "install with auto where all NICs are veths" '{"type": "symroute"}' \
        "route del default via 10.20.0.1" "route add default via 10.20.0.1"
    echo "$right" >"$WORK/entry"
    kill_everywhere install install --binary "$SYMROUTE_BIN" --config "$WORK/entry" --no-up
    run install --binary "$SYMROUTE_BIN" --config "$WORK/entry" --no-up
    kill_everywhere upgrade upgrade --binary "$WORK/newer/symroute"
    run upgrade --binary "$WORK/newer/symroute"
    kill_everywhere "upgrade of the tool alone" upgrade --binary "$WORK/newer/symroute" --tool "$SYMROUTE_CTL"
    run upgrade --binary "$WORK/old/symroute"
    kill_everywhere "upgrade from one program to two" upgrade --binary "$SYMROUTE_BIN"
    run upgrade --binary "$SYMROUTE_BIN"
    kill_everywhere "rollback from two programs to one" upgrade --rollback
    kill_everywhere "symroutectl uninstall" "$SYMROUTE_CTL" uninstall
    run install --binary "$SYMROUTE_BIN" --config "$WORK/entry" --no-up
    kill_everywhere uninstall uninstall
    rm "$WORK/bin/sleep"
    unset NO_START
}
