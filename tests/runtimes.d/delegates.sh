# shellcheck shell=bash
# Tests a pod with two more interfaces, created like Multus does: one libcni call with its own conflist for
# each. To be sourced by tests/runtimes, on the node of node.sh.
#
#         client 198.51.100.9, 2001:db8:51::9
#                       |
#     +----------rails--+---------------+    drops packets from one rail's addresses that arrive on the other
#   rail1 10.31.0.1                rail2 10.32.0.1
#     |   2001:db8:31::1             |   2001:db8:32::1
#     |                            port
#   macvlan                       bridge rail-br
#     |                              |
#   net1 10.31.0.x   eth0: ptp     net2 10.32.0.x     strict rp_filter, default routes through eth0
#     +----------------pod-----------+

rails() {
    local number
    ip netns add rails
    ip -n rails link set lo up
    ip -n rails addr add 198.51.100.9/32 dev lo
    ip -n rails addr add 2001:db8:51::9/128 dev lo
    ip netns exec rails sysctl -qw net.ipv4.conf.all.arp_announce=2 net.ipv4.conf.all.rp_filter=0
    for number in 1 2; do
        ip link add "rail$number" type veth peer name "rail$number" netns rails
        ip link set "rail$number" up
        ip netns exec rails sysctl -qw "net.ipv4.conf.rail$number.rp_filter=0"
        ip -n rails link set "rail$number" up
        ip -n rails addr add "10.3$number.0.1/32" dev "rail$number"
        ip -n rails addr add "2001:db8:3$number::1/128" dev "rail$number" nodad
        # The client's source address is in none of the pod's networks.
        ip -n rails route add "10.3$number.0.0/24" dev "rail$number" src 198.51.100.9
        ip -n rails route add "2001:db8:3$number::/64" dev "rail$number" src 2001:db8:51::9
        ip netns exec rails nft -f - <<TEXT
table inet check$number {
    chain in {
        type filter hook prerouting priority raw
        iifname != rail$number ip saddr 10.3$number.0.0/24 counter drop
        iifname != rail$number ip6 saddr 2001:db8:3$number::/64 counter drop
    }
}
TEXT
    done
    ip link add rail-br type bridge
    ip link set rail-br up
    ip link set rail2 master rail-br
}

# delegates_conflists ENTRY: writes the default network's conflist, with symroute for the node, and those of the
# delegates, with ENTRY for symroute.
delegates_conflists() {
    local ours=$1 number primary
    cat >"$NETD/10-lab.conflist" <<'TEXT'
{"cniVersion": "1.0.0", "name": "lab", "plugins": [
    {"type": "ptp", "ipam": {"type": "host-local",
        "ranges": [[{"subnet": "10.88.0.0/24"}], [{"subnet": "2001:db8:88::/64"}]],
        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]}},
    {"type": "symroute", "uplinks": ["eth0", "eth1"]}]}
TEXT
    mkdir -p "$WORK/delegates"
    for number in 1 2; do
        primary='"type": "macvlan", "master": "rail1"'
        [[ $number == 1 ]] || primary='"type": "bridge", "bridge": "rail-br"'
        # Each network has a router but no route through it, because the pod already has its default routes.
        cat >"$WORK/delegates/net$number.conflist" <<TEXT
{"cniVersion": "1.0.0", "name": "network$number", "plugins": [
    {$primary, "ipam": {"type": "host-local", "ranges": [
        [{"subnet": "10.3$number.0.0/24", "gateway": "10.3$number.0.1"}],
        [{"subnet": "2001:db8:3$number::/64", "gateway": "2001:db8:3$number::1"}]]}}$ours]}
TEXT
    done
}

# delegate VERB NUMBER: calls libcni for net1 or net2 of the pod, with the arguments that Multus passes.
delegate() {
    "$WORK/libcni" "$1" "$WORK/delegates" "network$2" chain /run/netns/chain "net$2"
}

default_network() {
    "$WORK/libcni" "$1" "$NETD" lab chain /run/netns/chain
}

# addresses INTERFACE: prints the addresses, IPv4 first.
addresses() {
    ip -n chain -o addr show dev "$1" scope global | sed 's|.* inet6\{0,1\} \([0-9a-f.:]*\)/.*|\1|'
}

# Prints the kernel state of the pod. Leaves out table "local", where IPv6 routes appear late.
pods_kernel() {
    ip -n chain rule
    ip -n chain -6 rule
    ip -n chain route show table all | grep -v ' table local ' || true
    ip -n chain -6 route show table all | grep -v ' table local ' || true
    ip netns exec chain nft -s list ruleset
    ip netns exec chain grep -r . /proc/sys/net/ipv4/conf --include=rp_filter --include=src_valid_mark | sort
}

rules_in_pod() {
    { ip -n chain rule && ip -n chain -6 rule; } | wc -l
}

# Prints the number of packets that strict rp_filter has dropped in the pod.
dropped_in_pod() {
    ip netns exec chain nstat -asz TcpExtIPReversePathFilter | sed -n 's/^TcpExtIPReversePathFilter *\([0-9]*\) .*/\1/p'
}

# Prints symroute's traces on the node, without the files about network namespaces of pods.
node_alone() {
    traces | grep -v '^/run/symroute/netns/' || true
}

# what_answers SECONDS INTERFACE...: prints INTERFACE:FAMILY for each address that answers.
what_answers() {
    local seconds=$1 interface address client family answering=()
    shift
    for interface in "$@"; do
        for address in $(addresses "$interface"); do
            client=rails family=4
            [[ $interface != eth0 ]] || client=router
            [[ $address != *:* ]] || family=6
            [[ $client$family != router6 ]] || continue # the router has no IPv6
            ! CLIENT=$client ask "$address" "$seconds" || answering+=("$interface:$family")
        done
    done
    echo "${answering[*]}"
}

# Without symroute in the delegates' conflists, net1 and net2 must not answer.
delegates_bare() {
    local dropped answering number
    ip netns add chain
    ip -n chain link set lo up
    ip netns exec chain sysctl -qw net.ipv4.conf.all.rp_filter=1 net.ipv4.conf.default.rp_filter=1
    delegates_conflists ''
    default_network add || { echo "the default network is not there"; return; }
    # The server listens on all addresses, including later ones.
    ip netns exec chain busybox httpd -p 8080 -h "$WORK/rootfs/www" >/dev/null
    pods_kernel >"$WORK/pods-kernel"
    for number in 1 2; do
        delegate add "$number" || { echo "net$number is not there"; return; }
    done
    dropped=$(dropped_in_pod)
    answering=$(what_answers 1 eth0 net1 net2)
    [[ $answering == eth0:4 ]] || { echo "without symroute answer: $answering"; return; }
    [[ $(dropped_in_pod) -gt $dropped ]] || { echo "strict rp_filter dropped nothing"; return; }
    for number in 2 1; do
        delegate del "$number" || { echo "net$number stays"; return; }
    done
    diff "$WORK/pods-kernel" <(pods_kernel) >&2 || { echo "the pod is not as before"; return; }
    echo ok
}

# With symroute for the pod, every interface has to answer.
delegates_answer() {
    local answering number rules
    delegates_conflists ', {"type": "symroute", "scope": "pod"}'
    node_alone >"$WORK/node-alone"
    rules=$(rules_in_pod)
    for number in 1 2; do
        delegate add "$number" || { echo "net$number is not there"; return; }
        [[ $(rules_in_pod) -gt $rules ]] || { echo "nothing grows with net$number"; return; }
        rules=$(rules_in_pod)
        echo "$rules" >"$WORK/rules-$number"
    done
    answering=$(what_answers 10 eth0 net1 net2)
    [[ $answering == "eth0:4 net1:4 net1:6 net2:4 net2:6" ]] ||
        { ip -n chain rule >&2; echo "only these answer: $answering"; return; }
    default_network check || { echo "CHECK of eth0 fails"; return; }
    for number in 1 2; do
        delegate check "$number" || { echo "CHECK of net$number fails"; return; }
    done
    diff "$WORK/node-alone" <(node_alone) >&2 || { echo "the node is not as before"; return; }
    echo ok
}

# Runs GC for each delegate's network. net1 is a valid attachment, net2 is not.
delegates_gc() {
    local before answering
    before=$(pods_kernel)
    "$WORK/libcni" gc "$WORK/delegates" network1 chain/net1 || { echo "GC of network1 fails"; return; }
    diff <(echo "$before") <(pods_kernel) >&2 || { echo "GC changes what is valid"; return; }
    "$WORK/libcni" gc "$WORK/delegates" network2 || { echo "GC of network2 fails"; return; }
    [[ $(rules_in_pod) == "$(cat "$WORK/rules-1")" ]] ||
        { echo "$(rules_in_pod) rules after it, $(cat "$WORK/rules-1") before net2 came"; return; }
    answering=$(what_answers 1 eth0 net1 net2)
    [[ $answering == "eth0:4 net1:4 net1:6" ]] || { echo "after it answer: $answering"; return; }
    delegate check 1 || { echo "CHECK of net1 fails"; return; }
    ! delegate check 2 2>/dev/null || { echo "CHECK of net2 passes"; return; }
    echo ok
}

# Deletes the attachments in reverse order while the pod runs.
delegates_del() {
    local number left
    delegate del 2 || { echo "DEL of net2 fails"; return; }
    [[ $(what_answers 10 eth0 net1) == "eth0:4 net1:4 net1:6" ]] || { echo "net1 does not outlive net2"; return; }
    delegate check 1 || { echo "CHECK of net1 fails without net2"; return; }
    delegate del 1 || { echo "DEL of net1 fails"; return; }
    diff "$WORK/pods-kernel" <(pods_kernel) >&2 || { echo "the pod is not as before"; return; }
    left=$(find /run/symroute/netns -mindepth 1 2>/dev/null) || true
    [[ -z $left ]] || { echo "left: $left"; return; }
    # Multus may repeat a DEL.
    for number in 2 1; do
        delegate del "$number" || { echo "DEL of net$number once more fails"; return; }
    done
    default_network del || { echo "DEL of eth0 fails"; return; }
    [[ -z $(enrolled) ]] || { echo "still enrolled: $(enrolled)"; return; }
    echo ok
}

delegates() {
    local before reason
    step "libcni, a pod with delegates as Multus has them"
    reason=$(missing macvlan)
    if [[ -n $reason ]]; then
        not_run "a pod with delegates" "$reason"
        return
    fi
    rails
    before=$(traces)
    verdict "without symroute net1 and net2 do not answer a client beyond their networks" "$(delegates_bare)"
    verdict "with scope pod each interface answers, and CHECK passes" "$(delegates_answer)"
    verdict "GC that does not know net2 takes that alone" "$(delegates_gc)"
    verdict "DEL of one after the other leaves the pod as before" "$(delegates_del)"
    ip netns pids chain | xargs -r kill
    ip netns del chain
    verdict "the node is as before" "$(diff <(echo "$before") <(traces) >&2 && echo ok || echo "it is not")"
    ip netns del rails
    ip link del rail-br
}
