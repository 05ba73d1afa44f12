# shellcheck shell=bash
# tests/install systemd: installs, boots and uninstalls on a node whose first process is systemd. To be
# sourced.
#
# systemd-nspawn gives the node its own root, /tmp and /usr/local/bin, and a read-only /usr of this machine.
# The node can't write to any file of this machine. It has only the units that the test installs, because
# those in /usr would start other services.

readonly UNIT_PATH=/etc/systemd/system:/etc/units

make_machine() {
    local name dir=$WORK/machine
    MACHINE=$dir
    mkdir -p "$dir"/{usr,local-bin,dev,proc,sys,run,tmp,root,repository,opt/cni/bin} "$dir"/var/{lib,log,tmp} \
        "$dir"/etc/{cni/net.d,systemd/system,units/multi-user.target.wants,units/network-online.target.wants}
    # The plugin has to be in the same directory as the primary plugin.
    ln -s /usr/lib/cni/* "$dir/opt/cni/bin/"
    for name in bin sbin lib lib64; do ln -s "usr/$name" "$dir/$name"; done
    cp /etc/passwd /etc/group /etc/ld.so.cache "$dir/etc/"
    echo 'ID=debian' >"$dir/etc/os-release"
    echo 00112233445566778899aabbccddeeff >"$dir/etc/machine-id"
    for name in sysinit basic multi-user local-fs paths sockets timers slices network network-online shutdown umount; do
        cp "/usr/lib/systemd/system/$name.target" "$dir/etc/units/"
    done
    # The network comes up late, like with DHCP.
    cat >"$dir/etc/units/network-comes.service" <<'TEXT'
[Unit]
Before=network-online.target
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/sleep 1
ExecStart=/bin/sh -ec 'for n in 0 1; do ip addr add 10.2$$n.0.10/24 dev eth$$n; done'
ExecStart=/bin/sh -ec 'ip route add default via 10.20.0.1; ip route add default via 10.21.0.1 table 101'
TEXT
    # Stands for the container runtime: records which tables exist when it starts. It does not wait for any
    # unit.
    cat >"$dir/etc/units/containerd.service" <<'TEXT'
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/sh -c 'nft list tables >/var/lib/found-by-containerd'
TEXT
    ln -s ../network-comes.service "$dir/etc/units/network-online.target.wants/"
    ln -s ../containerd.service "$dir/etc/units/multi-user.target.wants/"
    rewritten_by_primary
    echo '{"type": "symroute", "uplinks": ["eth0", "eth1"]}' >"$dir/etc/entry"
}

# Finds the process, in this PID namespace, that is process 1 of the machine.
find_leader() {
    LEADER=$(awk '/^NSpid:/ && NF == 3 && $3 == 1 { print $2 }' /proc/[0-9]*/status 2>/dev/null)
    [[ -n $LEADER ]]
}

# on_it COMMAND...: runs the command on the machine.
on_it() {
    nsenter --target "$LEADER" --mount --net --pid --ipc --uts --root --wd \
        env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root SYSTEMD_UNIT_PATH=$UNIT_PATH "$@"
}

booted() {
    [[ $(on_it systemctl is-system-running) == running ]]
}

# Moves the calling shell to cgroups of its own, which systemd divides further. forget_cgroups removes them.
own_cgroups() {
    local dir
    for dir in $(findmnt -n -o TARGET -t cgroup2) $(findmnt -n -o TARGET -t cgroup -O name=systemd); do
        mkdir -p "$dir/symroute-machine"
        echo "$BASHPID" >"$dir/symroute-machine/cgroup.procs"
    done
}

# Boots the machine with a new network namespace, so that no kernel state is left from before.
boots() {
    local nic
    rm -f "$MACHINE/var/lib/found-by-containerd"
    ip netns add machine && ip -n machine link set lo up
    for nic in eth0 eth1; do
        ip -n machine link add "$nic" type veth peer name "peer-$nic"
        ip -n machine link set "$nic" up && ip -n machine link set "peer-$nic" up
    done
    machine >>"$WORK/machine.log" 2>&1 &
    NSPAWN=$!
    until_ find_leader || { cat "$WORK/machine.log"; return 1; }
    PATIENCE=60 until_ booted || { cat "$WORK/machine.log"; on_it systemctl --no-pager list-jobs; return 1; }
}

machine() {
    own_cgroups
    # The machine has its own network namespace, so it may write to its own /proc/sys/net.
    SYSTEMD_NSPAWN_API_VFS_WRITABLE=network exec systemd-nspawn --quiet --directory="$MACHINE" \
        --bind-ro=/usr --bind="$MACHINE/local-bin:/usr/local/bin" --bind-ro="$PWD:/repository" \
        --bind-ro="$WORK/symroute:/root/symroute" --bind-ro="$WORK/symroutectl:/root/symroutectl" --register=no --keep-unit --console=pipe --link-journal=no \
        --resolv-conf=off --timezone=off --network-namespace-path=/run/netns/machine \
        --capability=CAP_NET_ADMIN,CAP_NET_RAW --setenv=SYSTEMD_UNIT_PATH=$UNIT_PATH --boot -- \
        --unit=multi-user.target --log-target=console --show-status=no \
        --default-standard-output=null --default-standard-error=null </dev/null
}

# Simulates a loss of power. At the next boot, systemd-tmpfiles would clean /var/tmp.
goes_off() {
    kill -KILL "$LEADER"
    wait "$NSPAWN" 2>/dev/null || true
    rm -rf "$MACHINE"/var/tmp/*
    ip netns del machine
}

# install_sh ARGUMENTS...: runs install.sh on the machine.
install_sh() {
    on_it /bin/sh /repository/install.sh "$@" >"$WORK/said" 2>&1
}

in_force() {
    on_it nft list tables | grep -x 'table inet symroute' && on_it ip rule | grep '^402:.*lookup 47002'
}

not_in_force() {
    local tables rules
    tables=$(on_it nft list tables) && rules=$(on_it ip rule) &&
        [[ $tables != *symroute* && $rules != *$'\n40'[0-3]:* ]]
}

entry_in_machine() {
    grep -q '"symroute"' "$MACHINE/etc/cni/net.d/10-lab.conflist"
}

rewritten_by_primary() {
    conflist bridge bare
    mv "$NETD/10-lab.conflist" "$MACHINE/etc/cni/net.d/"
}

is() {
    [[ $(on_it systemctl "is-$1" "$2") == "$3" ]]
}

agent_is_ready() {
    is active symroute-agent.service active &&
        on_it bash -c 'exec 3<>/dev/tcp/127.0.0.1/9617 && printf "GET /readyz HTTP/1.0\r\n\r\n" >&3 && cat <&3' |
        grep '^HTTP/1.. 200'
}

well() {
    install_sh status --binary /root/symroute --json && [[ $(jq -r .state "$WORK/said") == well ]]
}

found_by_containerd() {
    local found=''
    ! grep -qx 'table inet symroute' "$MACHINE/var/lib/found-by-containerd" || found=yes
    [[ $found == "$1" ]]
}

machine_files() {
    tree "$MACHINE"/{etc,local-bin,opt,var} | grep -v found-by-containerd
    on_it systemctl list-units --all --plain --no-legend 'symroute*'
    on_it systemctl list-unit-files --no-legend 'symroute*' || true # no such unit
}

as_before() {
    diff "$WORK/machine-before" <(machine_files) && not_in_force
}

# Other programs remove symroute's table and rewrite the conflist. The agent has to repair both in its
# sandbox.
agent_heals() {
    on_it nft delete table inet symroute && until_ in_force &&
        rewritten_by_primary && until_ entry_in_machine && until_ agent_is_ready
}

stopped_agent() {
    on_it systemctl stop symroute-agent.service && is active symroute-agent.service inactive && in_force
}

killed_agent() {
    local pid
    pid=$(on_it systemctl show --value --property MainPID symroute-agent.service)
    on_it kill -KILL "$pid"
    until_ agent_is_ready && [[ $(on_it systemctl show --value --property MainPID symroute-agent.service) != "$pid" ]]
}

up_ran_before() {
    is active symroute-up.service active && found_by_containerd yes && in_force
}

path_unit_fires() {
    is active symroute-conflist.path active || return 1
    # Remove the node state first, to show that the unit runs "up" again.
    on_it /opt/cni/bin/symroute down && not_in_force && rewritten_by_primary && until_ entry_in_machine && until_ in_force
}

with_systemd() {
    make_machine
    works "a node boots with systemd" boots
    works "its runtime finds nothing of symroute" found_by_containerd ''
    machine_files >"$WORK/machine-before"
    works "install" install_sh install --binary /root/symroute --config /etc/entry
    works "all is well, to programs, too" well
    works "the agent is ready" agent_is_ready
    works "the agent heals, with the rights of its unit" agent_heals
    works "the agent is stopped: what is in force stays" stopped_agent
    works "the agent is started" on_it systemctl start symroute-agent.service
    works "a killed agent is started anew" killed_agent
    goes_off
    works "the node boots again" boots
    works "node state was there before the runtime" up_ran_before
    works "the agent is ready after the boot" until_ agent_is_ready
    works "uninstall" install_sh uninstall
    works "nothing is left" as_before
    works "install --no-agent" install_sh install --no-agent --binary /root/symroute --config /etc/entry
    works "all is well without an agent, too" well
    works "the path unit acts on the primary's rewrite" path_unit_fires
    goes_off
    works "that node boots again" boots
    works "node state was there before the runtime again" up_ran_before
    works "the path unit acts after the boot" path_unit_fires
    works "uninstall again" install_sh uninstall
    works "nothing is left again" as_before
    goes_off
}
