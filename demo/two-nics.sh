#!/bin/sh
# A node with two NICs, without symroute and with it. "./install.sh --demo" runs this.
#
#                    client 203.0.113.9
#                             |
#    +------------------------+------------------------+  the cloud: counts packets by NIC, and
#    |                      router                     |  drops what leaves a NIC with an address
#    +--------+-------------------------------+--------+  that is not the NIC's
#           eth0                            eth1
#           10.20.0.10                      10.21.0.10
#    +--------+-------------------------------+--------+
#    |  default route, metric 100      metric 200      |  node: strict rp_filter, a web server on
#    +--------+-------------------------------+--------+  10250, NodePort 30080 to pod-a
#           pod-a                           pod-b
#           10.20.0.50                      10.21.0.50    web servers on 8080
#
# The same in IPv6: 2001:db8:20::/64, 2001:db8:21::/64, client 2001:db8:9::9.
set -eu
cd "$(dirname "$0")/.."
. scripts/common.sh
. demo/chain.sh

for applet in httpd wget; do
    busybox --list | grep -qx "$applet" || die "this busybox has no $applet" "Install the package busybox-static."
done

# The directories with symroute and symroutectl, and with the plugins that the chain calls before symroute.
CNI_PATH=$(cd "${1%%:*}" && pwd):${1#*:}
CONFLIST=conf/demo.conflist
WORK=$(mktemp -d "${TMPDIR:-/tmp}/symroute-demo.XXXXXX")
NAME=symdemo$$
NODE=$NAME-node ROUTER=$NAME-router CLIENT=$NAME-client POD_A=$NAME-pod-a POD_B=$NAME-pod-b
ALL="$NODE $ROUTER $CLIENT $POD_A $POD_B"
PODS="$POD_A $POD_B"

# Deviations from the expected results, one per line.
FAULTS=$WORK/faults
fault() {
    paint 31 "  NOT AS EXPECTED: $1"
    printf '%s\n' "$1" >>"$FAULTS"
}

clean_up() {
    trap '' INT TERM HUP
    for ns in $ALL; do
        [ -e "/run/netns/$ns" ] || continue
        for pid in $(ip netns pids "$ns"); do
            kill "$pid" 2>/dev/null || true
        done
        ip netns del "$ns"
    done
    rm -rf "$WORK"
}
trap clean_up EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

# in_ns NAMESPACE COMMAND...: runs a command in a network namespace.
in_ns() {
    ip netns exec "$@"
}

# namespace NAME RP_FILTER: makes a network namespace without duplicate address detection and without
# repeated SYN-ACKs.
namespace() {
    ip netns add "$1" || die "can't make a network namespace" "In a container, the demo needs --privileged."
    # shellcheck disable=SC2016 # for the inner shell
    in_ns "$1" sh -c '
        cd /proc/sys/net
        for scope in all default; do
            echo "$0" >ipv4/conf/$scope/rp_filter
            echo 0 >ipv6/conf/$scope/disable_ipv6
            echo 0 >ipv6/conf/$scope/accept_dad
            echo 0 >ipv6/conf/$scope/accept_ra
        done
        echo "$0" >ipv4/conf/lo/rp_filter
        echo 0 >ipv4/tcp_synack_retries
        ip link set lo up' "$2"
}

# plug PORT NAMESPACE NUMBER: connects the router's PORT with eth0 or eth1 of NAMESPACE.
plug() {
    ifname=eth0
    [ "$1" != eth1 ] || ifname=eth1
    ip -n "$ROUTER" link add "$1" address "02:00:00:00:00:0$3" type veth \
        peer name "$ifname" address "02:00:00:00:01:0$3" netns "$2"
    ip -n "$ROUTER" link set "$1" up
    ip -n "$2" link set "$ifname" up
}

# behind PORT ADDRESS NUMBER: makes a permanent neighbour entry, as a cloud knows addresses without ARP.
behind() {
    ip -n "$ROUTER" neigh add "$2" dev "$1" lladdr "02:00:00:00:01:0$3" nud permanent
}

lay_out() {
    namespace "$ROUTER" 0
    namespace "$CLIENT" 0
    namespace "$NODE" 1
    for pod in $PODS; do namespace "$pod" 1; done
    for ns in "$ROUTER" "$NODE"; do
        in_ns "$ns" sh -c 'echo 1 >/proc/sys/net/ipv4/ip_forward; echo 1 >/proc/sys/net/ipv6/conf/all/forwarding'
    done
    plug eth0 "$NODE" 0
    plug eth1 "$NODE" 1
    plug client "$CLIENT" 9
    for i in 0 1; do
        ip -n "$ROUTER" addr add "10.2$i.0.1/24" dev "eth$i"
        ip -n "$ROUTER" addr add "2001:db8:2$i::1/64" dev "eth$i" nodad
        ip -n "$NODE" addr add "10.2$i.0.10/24" dev "eth$i"
        ip -n "$NODE" addr add "2001:db8:2$i::10/64" dev "eth$i" nodad
        ip -n "$NODE" route add default via "10.2$i.0.1" dev "eth$i" metric "$((i + 1))00"
        ip -n "$NODE" route add default via "2001:db8:2$i::1" dev "eth$i" metric "$((i + 1))00"
        for host in 10 50; do
            behind "eth$i" "10.2$i.0.$host" "$i"
            behind "eth$i" "2001:db8:2$i::$host" "$i"
        done
    done
    ip -n "$ROUTER" addr add 203.0.113.1/24 dev client
    ip -n "$ROUTER" addr add 2001:db8:9::1/64 dev client nodad
    ip -n "$CLIENT" addr add 203.0.113.9/24 dev eth0
    ip -n "$CLIENT" addr add 2001:db8:9::9/64 dev eth0 nodad
    ip -n "$CLIENT" route add default via 203.0.113.1
    ip -n "$CLIENT" route add default via 2001:db8:9::1
    # The DNAT that kube-proxy makes for a Service of type NodePort.
    in_ns "$NODE" nft -f - <<'NFT'
table inet node_port {
    chain prerouting {
        type nat hook prerouting priority dstnat
        meta nfproto ipv4 fib daddr type local tcp dport 30080 dnat ip to 10.20.0.50:8080
        meta nfproto ipv6 fib daddr type local tcp dport 30080 dnat ip6 to [2001:db8:20::50]:8080
    }
}
NFT
    serve "$NODE" host 10250
    serve "$POD_A" pod-a 8080
    serve "$POD_B" pod-b 8080
}

# serve NAMESPACE NAME PORT: starts a web server that answers with NAME. It listens when this returns.
serve() {
    mkdir "$WORK/$2"
    printf '%s\n' "$2" >"$WORK/$2/index.html"
    in_ns "$1" busybox httpd -p "$3" -h "$WORK/$2"
}

# The flows, one per line: target, NIC on which the request arrives, address, port, server that answers.
FLOWS='host       eth0  10.20.0.10       10250  host
host       eth1  10.21.0.10       10250  host
pod-a      eth0  10.20.0.50       8080   pod-a
pod-b      eth1  10.21.0.50       8080   pod-b
NodePort   eth0  10.20.0.10       30080  pod-a
NodePort   eth1  10.21.0.10       30080  pod-a
host       eth0  2001:db8:20::10  10250  host
host       eth1  2001:db8:21::10  10250  host
pod-a      eth0  2001:db8:20::50  8080   pod-a
pod-b      eth1  2001:db8:21::50  8080   pod-b
NodePort   eth0  2001:db8:20::10  30080  pod-a
NodePort   eth1  2001:db8:21::10  30080  pod-a'

# Makes the cloud's rules: counters of requests and replies for each flow and NIC, and the source check.
cloud() {
    printf '%s\n' "$FLOWS" | awk '
        {
            ip = ($3 ~ /:/) ? "ip6" : "ip"
            for (n = 0; n < 2; n++) {
                counters = counters sprintf("counter requests_%d_eth%d {}\n counter replies_%d_eth%d {}\n", NR, n, NR, n)
                out = out sprintf("oifname eth%d %s daddr %s tcp dport %s counter name requests_%d_eth%d\n", n, ip, $3, $4, NR, n)
                back = back sprintf("iifname eth%d %s saddr %s tcp sport %s counter name replies_%d_eth%d\n", n, ip, $3, $4, NR, n)
            }
        }
        END {
            print "table inet cloud"
            print "delete table inet cloud"
            print "table inet cloud {"
            print counters "counter dropped {}"
            print "chain to_node {\n type filter hook postrouting priority 0\n" out "}"
            print "chain from_node {\n type filter hook prerouting priority raw\n" back
            for (n = 0; n < 2; n++) {
                printf "iifname eth%d ip saddr != 10.2%d.0.0/24 counter name dropped drop\n", n, n
                printf "iifname eth%d ip6 saddr != { fe80::/10, ::, 2001:db8:2%d::/64 } counter name dropped drop\n", n, n
            }
            print "}\n}"
        }' | in_ns "$ROUTER" nft -f -
}

# Prints lines "NAME PACKETS".
counters() {
    in_ns "$ROUTER" nft list counters table inet cloud |
        awk '$1 == "counter" { name = $2 } $1 == "packets" { print name, $2 }'
}

# Prints the number of packets that strict rp_filter has dropped on the node.
rp_filter_drops() {
    in_ns "$NODE" cat /proc/net/netstat | awk '
        $1 == "TcpExt:" && at { print $at; exit }
        $1 == "TcpExt:" { for (i = 2; i <= NF; i++) if ($i == "IPReversePathFilter") at = i }'
}

# nic_of requests|replies NUMBER: prints the NICs that the packets of this flow took.
nic_of() {
    counters | awk -v prefix="$1_$2_" '
        index($1, prefix) == 1 && $2 > 0 { nics = nics sep substr($1, length(prefix) + 1); sep = "+" }
        END { print (nics == "") ? "-" : nics }'
}

# ask_all before|after: sends every request, prints its outcome and the NIC of the reply, and compares both
# with the expectation. Before, all requests on eth1 get lost; after, none.
ask_all() {
    cloud
    printf '  %-10s %-23s %-10s %-8s %s\n' REQUEST TO 'CAME IN BY' 'LEFT BY' OUTCOME
    number=0 answered=0 symmetric=0
    while read -r what nic address port who; do
        number=$((number + 1))
        ask "$1"
    done <<FLOWS_END
$FLOWS
FLOWS_END
    printf '%s %s %s\n' "$number" "$answered" "$symmetric" >"$WORK/$1"
}

ask() {
    case $address in
        *:*) url="[$address]:$port" ;;
        *) url="$address:$port" ;;
    esac
    expected=answered deadline=10
    if [ "$1" = before ] && [ "$nic" = eth1 ]; then expected=lost deadline=2; fi
    strict=$(rp_filter_drops) source=$(counters | awk '$1 == "dropped" { print $2 }')
    answer=$(in_ns "$CLIENT" timeout --foreground "$deadline" busybox wget -q -O - "http://$url/" 2>/dev/null) || answer=''
    strict=$(($(rp_filter_drops) - strict))
    source=$(($(counters | awk '$1 == "dropped" { print $2 }') - source))
    in_by=$(nic_of requests "$number") left_by=$(nic_of replies "$number")
    if [ "$answer" = "$who" ]; then
        outcome=answered text="answered by $answer" answered=$((answered + 1))
    elif [ "$strict" -gt 0 ]; then
        outcome=lost text="lost: the node's strict rp_filter dropped the request"
    elif [ "$source" -gt 0 ]; then
        outcome=lost text="lost: the cloud's source check dropped the reply"
    else
        outcome=lost text="lost${answer:+: answered by $answer}"
    fi
    [ "$in_by" != "$left_by" ] || symmetric=$((symmetric + 1))
    line=$(printf '  %-10s %-23s %-10s %-8s %s' "$what" "$url" "$in_by" "$left_by" "$text")
    if [ "$outcome" = answered ]; then paint 32 "$line"; else paint 31 "$line"; fi
    [ "$outcome" = "$expected" ] || fault "$what $url: $outcome, should be $expected"
    [ "$in_by" = "$nic" ] || fault "$what $url: came in by $in_by, should be $nic"
    if [ "$expected" = answered ]; then
        [ "$left_by" = "$nic" ] || fault "$what $url: the reply left by $left_by, should be $nic"
        [ "$((strict + source))" -eq 0 ] || fault "$what $url: rp_filter dropped $strict, the source check $source packet(s)"
    elif [ "$((strict + source))" -eq 0 ]; then
        fault "$what $url: lost, but neither rp_filter nor the source check dropped anything"
    fi
}

# Prints everything on the node that symroute could have changed.
node_state() {
    for family in -4 -6; do
        ip -n "$NODE" "$family" rule
        ip -n "$NODE" "$family" route show table all
    done
    in_ns "$NODE" nft -s list ruleset
    in_ns "$NODE" sh -c 'grep . /proc/sys/net/ipv4/conf/*/rp_filter /proc/sys/net/ipv4/conf/*/src_valid_mark'
    ls "$WORK/run/symroute" 2>/dev/null || true
}

on_pods() {
    for pod in $PODS; do
        chain "$1" "$pod" "$2" || die "CNI $1 for $pod failed, see above"
    done
}

step "Lay out a cloud, a client and a node with two NICs"
lay_out
node_state >"$WORK/state.before"
printf '  network namespaces %s\n' "$ALL"
sed -n '4,16s/^#/  /p' demo/two-nics.sh

step "Give the pods their network by the primary plugin alone (ptp)"
on_pods ADD ptp

step "Ask without symroute"
ask_all before
on_pods DEL ptp

step "The same with the whole chain of $CONFLIST (ptp, symroute)"
on_pods ADD symroute

step "Ask with symroute"
ask_all after

step "symroutectl status"
on_node "${CNI_PATH%%:*}/symroutectl" status >"$WORK/status" || fault "symroutectl status: exit code $?"
sed 's/^/  /' "$WORK/status"

step "Take the pods away, in reverse order of the chain"
on_pods DEL symroute
node_state >"$WORK/state.after"
printf '  ip rule on the node now:\n'
ip -n "$NODE" rule | sed 's/^/    /'
printf '  tables of nftables on the node now: %s\n' "$(in_ns "$NODE" nft list tables | tr '\n' ' ')"
if ! diff "$WORK/state.before" "$WORK/state.after" >"$WORK/state.diff"; then
    sed 's/^/    /' "$WORK/state.diff"
    fault "the node is not as it was before"
fi

printf '\n  %-22s %-10s %-10s %s\n' '' REQUESTS ANSWERED 'REPLY BY THE NIC OF ITS REQUEST'
for phase in before after; do
    read -r number answered symmetric <"$WORK/$phase"
    name='without symroute'
    [ "$phase" = before ] || name='with symroute'
    printf '  %-22s %-10s %-10s %s\n' "$name" "$number" "$answered" "$symmetric"
done
if [ -s "$FAULTS" ]; then
    paint 31 "demo: FAILED, $(wc -l <"$FAULTS") thing(s) not as expected:"
    sed 's/^/  /' "$FAULTS"
    exit 1
fi
paint 32 "demo: all as expected; the node is as it was before, and nothing is left on this machine"
