# shellcheck shell=sh
# Runs a chain of CNI plugins like a container runtime. For ADD, it calls the plugins in order and passes
# each the previous result as prevResult. For DEL, it calls them in reverse order with the result of the
# ADD. To be sourced.
#
# Needs: CONFLIST, CNI_PATH, WORK (a directory), NODE (the node's network namespace).

# on_node COMMAND...: runs a command in the node's network namespace. Mounts directories in $WORK over
# /run, /var/lib and /var/log, so that the plugins do not touch this machine's runtime and symroute.
on_node() {
    mkdir -p "$WORK/run/netns" "$WORK/lib" "$WORK/log"
    # shellcheck disable=SC2016 # for the inner shell
    ip netns exec "$NODE" sh -c '
        mount --rbind /run/netns "$0/run/netns" && mount --bind "$0/lib" /var/lib &&
            mount --bind "$0/log" /var/log && mount --rbind "$0/run" /run && exec "$@"' "$WORK" "$@"
}

# chain ADD|DEL POD LAST: runs the plugins of the conflist up to the one of type LAST for the pod with the
# network namespace POD. ADD writes its result to $WORK/POD.result.
chain() {
    verb=$1 pod=$2 last=$3
    result=$WORK/$pod.result
    awk -f demo/plugins.awk "$CONFLIST" | sed "/\"type\": *\"$last\"/q" >"$WORK/plugins"
    if [ "$verb" = ADD ]; then
        rm -f "$result"
    else
        sed '1!G;h;$!d' "$WORK/plugins" >"$WORK/reversed"
        mv "$WORK/reversed" "$WORK/plugins"
    fi
    while read -r object; do
        # The first "type" is that of the plugin, a later one that of its IPAM.
        type=$(printf '%s\n' "$object" | sed 's/^[^:]*"type": *"\([^"]*\)".*/\1/')
        call_plugin "$verb" "$pod" "$type" "$object" </dev/null || return 1
    done <"$WORK/plugins"
}

# call_plugin ADD|DEL POD TYPE OBJECT: calls one plugin.
call_plugin() {
    program=$(PATH=$CNI_PATH command -v "$3") || die "no CNI plugin \"$3\" in $CNI_PATH"
    prev_result=''
    [ ! -s "$result" ] || prev_result=",\"prevResult\":$(cat "$result")"
    printf '{"cniVersion":"%s","name":"%s",%s%s}\n' "$(top_level cniVersion)" "$(top_level name)" \
        "$(printf '%s\n' "$4" | sed 's/^ *{//; s/} *$//')" "$prev_result" >"$WORK/config"
    CNI_COMMAND=$1 CNI_CONTAINERID=$2 CNI_NETNS=/run/netns/$2 CNI_IFNAME=eth0 CNI_PATH=$CNI_PATH \
        on_node "$program" <"$WORK/config" >"$WORK/answer" 2>"$WORK/stderr" || {
        printf '%s %s failed: %s %s\n' "$3" "$1" "$(cat "$WORK/answer")" "$(cat "$WORK/stderr")"
        return 1
    }
    [ "$1" != ADD ] || mv "$WORK/answer" "$result"
}

# top_level KEY: prints a text value of the conflist itself.
top_level() {
    sed -n "s/^ *\"$1\": *\"\(.*\)\",*$/\1/p" "$CONFLIST" | head -n 1
}
