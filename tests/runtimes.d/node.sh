# shellcheck shell=bash
# Creates a node in its own namespaces for tests/runtimes and tests/install: its folders, its network as
# tests/runtimes draws it, and pods with libcni and containerd. To be sourced. $WORK is a temporary folder,
# $SYMROUTE_BIN the plugin, $SYMROUTE_CTL the tool.

readonly NETD=/etc/cni/net.d
# The path of libcni's sources in Debian.
# shellcheck disable=SC2034 # for the scripts that source this
readonly LIBCNI=/usr/share/gocode/src/github.com/containernetworking/cni/libcni/api.go

# A module of Debian's own Python. PATH may start with another Python.
# shellcheck disable=SC2034 # for the scripts that source this
readonly PYTHON_GRPC=/usr/lib/python3/dist-packages/grpc/__init__.py
# The socket's path on a real node, where an uninstall looks for it.
readonly CRI_SOCKET=/run/containerd/containerd.sock

make_libcni() {
    GO111MODULE=off GOPATH=/usr/share/gocode GOCACHE=$WORK/go GOFLAGS='' \
        go build -o "$WORK/libcni" tests/runtimes.d/libcni.go
}

cgroups() {
    find /sys/fs/cgroup -type d 2>/dev/null | sort
}

# Removes the empty parents of cgroups that runtimes leave behind.
forget_cgroups() {
    cgroups | comm -13 "$WORK/cgroups" - | grep -E '/(default|k8s\.io|libpod_parent|symroute-machine)(/|$)' | sort -r |
        while read -r dir; do rmdir "$dir" 2>/dev/null || true; done || true # no such cgroup
}

# Gives the test private, writable copies of the folders that runtimes use.
private_folders() {
    local dir
    mkdir "$WORK/layers"
    mount -t tmpfs layers "$WORK/layers"
    for dir in etc opt usr/local/bin var; do
        mkdir -p "$WORK/layers/$dir/"{upper,work}
        mount -t overlay overlay "/$dir" \
            -o "lowerdir=/$dir,upperdir=$WORK/layers/$dir/upper,workdir=$WORK/layers/$dir/work"
    done
    mount -t tmpfs run /run
    mkdir -p /run/netns /run/lock
    rm -rf "$NETD" /opt/cni /var/lib/cni
    mkdir -p "$NETD" /opt/cni/bin
    ln -s /usr/lib/cni/* /opt/cni/bin/
    # Debian's containerd looks for plugins in /usr/lib/cni, which is shared with the machine.
    rm -rf /etc/containerd /etc/crio
    mkdir /etc/containerd
    printf 'version = 2\n[plugins."io.containerd.grpc.v1.cri".cni]\n  bin_dir = "/opt/cni/bin"\n' >/etc/containerd/config.toml
}

root_file_system() {
    mkdir -p "$WORK"/rootfs/{bin,dev,etc,proc,run,sys,tmp,www}
    cp "$(command -v busybox)" "$WORK/rootfs/bin/busybox"
    ln -s busybox "$WORK/rootfs/bin/httpd"
    echo "hello from the pod" >"$WORK/rootfs/www/index.html"
}
readonly SERVER=(/bin/httpd -f -p 8080 -h /www) # the pod's only program

nodes_network() {
    local nic
    ip link set lo up
    ip netns add router
    ip -n router link set lo up
    for nic in eth0 eth1; do
        ip link add "$nic" type veth peer name "$nic" netns router
        ip link set "$nic" up
        ip -n router link set "$nic" up
    done
    ip addr add 10.20.0.10/24 dev eth0
    ip addr add 10.21.0.10/24 dev eth1
    ip route add default via 10.20.0.1
    ip route add default via 10.21.0.1 table 101
    sysctl -qw net.ipv4.ip_forward=1 net.ipv4.conf.all.rp_filter=1 net.ipv4.conf.default.rp_filter=1 \
        net.ipv4.conf.eth0.rp_filter=1 net.ipv4.conf.eth1.rp_filter=1
    # Like a router: ARP requests have its own address, even for packets of the client.
    ip netns exec router sysctl -qw net.ipv4.conf.all.arp_announce=2
    ip netns exec router sysctl -qw net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.eth0.rp_filter=0 \
        net.ipv4.conf.eth1.rp_filter=0 net.ipv4.ip_forward=1
    ip -n router addr add 10.20.0.1/24 dev eth0
    ip -n router addr add 10.21.0.1/24 dev eth1
    ip -n router addr add 203.0.113.9/32 dev lo
    ip -n router route add 10.88.0.0/16 via 10.21.0.10 src 203.0.113.9
    ip netns exec router nft -f - <<'TEXT'
table ip check {
    chain in {
        type filter hook prerouting priority raw
        iifname eth0 ip saddr 10.88.0.0/16 counter drop comment "reply by the wrong NIC"
    }
}
TEXT
}

# conflist PRIMARY [bare]: writes the only network of the node; with "bare" without symroute.
conflist() {
    local primary ipam='{"type": "host-local", "ranges": [[{"subnet": "10.88.0.0/24"}]],
        "routes": [{"dst": "0.0.0.0/0"}]}'
    local ours=', {"type": "symroute", "uplinks": ["eth0", "eth1"]}'
    local behind_eth1='{"type": "host-local", "ranges": [[{"subnet": "10.21.0.0/24",
        "rangeStart": "10.21.0.100", "rangeEnd": "10.21.0.199", "gateway": "10.21.0.1"}]],
        "routes": [{"dst": "0.0.0.0/0"}]}'
    case $1 in
        bridge) primary="\"bridge\": \"cni0\", \"isGateway\": true, \"ipam\": $ipam" ;;
        ptp) primary="\"ipam\": $ipam" ;;
        macvlan | ipvlan) primary="\"master\": \"eth1\", \"ipam\": $behind_eth1" ;;
    esac
    [[ ${2-} != bare ]] || ours=''
    cat >"$NETD/10-lab.conflist" <<TEXT
{"cniVersion": "1.0.0", "name": "lab", "plugins": [{"type": "$1", $primary}$ours]}
TEXT
}

status() {
    "$SYMROUTE_CTL" status --json || true # 1 where nothing is in force
}

# Prints the addresses of the attached pods, one per line.
enrolled() {
    { "$SYMROUTE_CTL" attachments --json || true; } | sed -n '/"addresses": \[/,/]/s/^ *"\([0-9a-f.:]*\)",\{0,1\}$/\1/p'
}

# Prints everything that symroute may leave on a node.
traces() {
    ip rule
    ip -6 rule
    ip route show table all | grep -E 'table 47[0-9]{3}' || true
    nft -s list ruleset
    grep -r . /proc/sys/net/ipv4/conf/eth[01]/{rp_filter,src_valid_mark}
    find /run/symroute -type f 2>/dev/null || true
}

# get ADDRESS: asks the pod, from the current namespace. (A static busybox's wget crashes in glibc.)
get() {
    local request='GET / HTTP/1.0\r\n\r\n'
    timeout 2 bash -c "exec 3<>/dev/tcp/$1/8080 && printf '$request' >&3 && cat <&3" 2>/dev/null |
        grep -q "hello from the pod"
}

# ask ADDRESS [SECONDS]: asks the pod from the client's namespace, $CLIENT, until it answers.
ask() {
    local deadline=$((SECONDS + ${2:-10}))
    export -f get
    while [[ $SECONDS -lt $deadline ]]; do
        ! ip netns exec "${CLIENT-router}" bash -c "get $1" || return 0
        sleep 0.1
    done
    return 1
}

libcni_start() {
    ip netns add "$1" && ip -n "$1" link set lo up
    "$WORK/libcni" add "$NETD" lab "$1" "/run/netns/$1" || return 1
    "$WORK/libcni" check "$NETD" lab "$1" "/run/netns/$1" || return 1
    ip netns exec "$1" busybox httpd -f -p 8080 -h "$WORK/rootfs/www" &
    echo $! >"$WORK/$1.pid"
}

libcni_stop() {
    kill "$(cat "$WORK/$1.pid")"
    "$WORK/libcni" del "$NETD" lab "$1" "/run/netns/$1" || return 1
    ip netns del "$1"
}

containerd_ready() {
    local dir=$WORK/containerd
    mkdir -p "$dir"
    cat >"$dir/config.toml" <<TEXT
version = 2
root = "$dir/root"
state = "$dir/state"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
address = "$dir/sock"
TEXT
    containerd --config "$dir/config.toml" >"$dir/log" 2>&1 &
    for _ in $(seq 100); do
        ctr -a "$dir/sock" version >/dev/null 2>&1 && return
        sleep 0.1
    done
    tail "$dir/log"
    return 1
}

containerd_start() {
    # Use a separate program: a subshell would keep the caller's output pipe open.
    bash -c 'ended=$1; shift; "$@" || true; touch "$ended"' - "$WORK/$1.ended" \
        ctr -a "$WORK/containerd/sock" run --rm --cni --rootfs "$WORK/rootfs" "$1" "${SERVER[@]}" &
}

containerd_end() {
    local deadline=$((SECONDS + 20))
    ctr -a "$WORK/containerd/sock" task kill --signal SIGKILL "$1"
    until [[ -e $WORK/$1.ended ]]; do
        [[ $SECONDS -lt $deadline ]] || return 1
        sleep 0.1
    done
}

# Calls containerd like the kubelet does.
cri_() {
    /usr/bin/python3 tests/runtimes.d/cri.py "$CRI_SOCKET" "$@"
}

cri_ready() {
    local dir=$WORK/cri
    mkdir -p "$dir" "${CRI_SOCKET%/*}"
    cat >"$dir/config.toml" <<TEXT
version = 2
root = "$dir/root"
state = "$dir/state"
[grpc]
address = "$CRI_SOCKET"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "symroute.test/pause:1"
disable_apparmor = true
restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/opt/cni/bin"
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "native"
TEXT
    conflist bridge # containerd needs a network to become ready
    containerd --config "$dir/config.toml" >"$dir/log" 2>&1 &
    # The server is the sandbox's first program, so the test needs no further container.
    if ! /usr/bin/python3 tests/runtimes.d/cri.py image "$WORK/rootfs" "$dir/image.tar" "${SERVER[@]}" ||
        ! cri_ ready || ! ctr -a "$CRI_SOCKET" -n k8s.io images import --snapshotter native "$dir/image.tar"; then
        tail "$dir/log"
        return 1
    fi
}

cri_start() {
    cri_ run "$1" >"$WORK/$1.id"
}

cri_stop() {
    cri_ end "$(cat "$WORK/$1.id")"
}

passed=0 failed=0

verdict() {
    if [[ $2 == ok ]]; then
        passed=$((passed + 1))
        paint 32 "    ok: $1${3:+ ($3)}"
    else
        failed=$((failed + 1))
        paint 31 "    FAILED: $1: $2"
    fi
}
