# shellcheck shell=sh
# Finds a node's directories of CNI plugins and conflists. POSIX sh, to be sourced after common.sh.

# Prints rows NAME|SIGN|PLUGINS|CONFLISTS. A row applies if the path SIGN exists below $ROOT. Rows of one
# distribution are adjacent, and the first one applies. Rows after "-" apply if no other row does.
platforms() {
    cat <<'TEXT'
microk8s|/var/snap/microk8s|/var/snap/microk8s/current/opt/cni/bin|/var/snap/microk8s/current/args/cni-network
k3s|/var/lib/rancher/k3s/data/cni|/var/lib/rancher/k3s/data/cni|/var/lib/rancher/k3s/agent/etc/cni/net.d
k3s|/var/lib/rancher/k3s/data/current/bin|/var/lib/rancher/k3s/data/current/bin|/var/lib/rancher/k3s/agent/etc/cni/net.d
RKE2|/var/lib/rancher/rke2|/opt/cni/bin|/etc/cni/net.d
GKE|/home/kubernetes/bin|/home/kubernetes/bin|/etc/cni/net.d
OpenShift|/etc/kubernetes/cni/net.d|/var/lib/cni/bin|/etc/kubernetes/cni/net.d
-
kubeadm, kind, EKS, AKS|/opt/cni/bin|/opt/cni/bin|/etc/cni/net.d
packages of Debian|/usr/lib/cni|/usr/lib/cni|/etc/cni/net.d
packages of Fedora|/usr/libexec/cni|/usr/libexec/cni|/etc/cni/net.d
TEXT
}

# Sets BIN_DIR and CONF_DIR to the directories in the runtime's configuration, as the tool finds them. Older
# releases lack this command. If the configuration is contradictory, only install refuses: the other commands have to
# work on such a node.
ask_runtime() {
    if [ -z "$TOOL" ]; then
        # GKE's tool is beside the plugin.
        case $PLATFORM in GKE) dir=$BIN_DIR ;; *) dir=/usr/local/bin ;; esac
        # shellcheck disable=SC2034 # for node.sh
        CTL=$ROOT${TOOL_DIR:-$dir}/symroutectl BIN=$ROOT$BIN_DIR/symroute
        find_tool
    fi
    [ -n "$TOOL" ] && "$TOOL" places --help >/dev/null 2>&1 || return 0
    set -- --root "${ROOT:-/}" --likely-bin-dir "$BIN_DIR" --likely-conf-dir "$CONF_DIR"
    [ -z "$GIVEN_BIN" ] || set -- "$@" --bin-dir "$GIVEN_BIN"
    [ -z "$GIVEN_CONF" ] || set -- "$@" --conf-dir "$GIVEN_CONF"
    code=0
    said=$("$TOOL" places "$@" 2>&1) || code=$?
    if [ "$code" -ne 0 ]; then
        [ "$COMMAND" != install ] || die "$said" "Nothing was changed."
        printf 'note: %s\n' "$said" >&2
        return
    fi
    BIN_DIR=$(printf '%s\n' "$said" | sed -n 's/^plugins \(.*\) (.*)$/\1/p')
    CONF_DIR=$(printf '%s\n' "$said" | sed -n 's/^conflists \(.*\) (.*)$/\1/p')
}

given_both() {
    [ -n "$BIN_DIR" ] && [ -n "$CONF_DIR" ]
}

# Sets PLATFORM, and BIN_DIR, CONF_DIR and TOOL_DIR unless the command line names them.
detect_platform() {
    PLATFORM='' found_bin='' found_conf=''
    while IFS='|' read -r name sign plugins conflists; do
        if [ "$name" = - ]; then
            [ -z "$PLATFORM" ] || break
            continue
        fi
        if [ ! -e "$ROOT$sign" ] || [ "$name" = "$PLATFORM" ]; then continue; fi
        [ -z "$PLATFORM" ] || given_both ||
            die "this looks like $PLATFORM and like $name" "Say which: give --bin-dir and --conf-dir." "Nothing was changed."
        PLATFORM=$name found_bin=$plugins found_conf=$conflists
        # The first of the rows after "-" is enough.
        case $name in kubeadm* | packages*) break ;; esac
    done <<TEXT
$(platforms)
TEXT
    [ -n "$PLATFORM" ] || given_both || die "found no directory of CNI plugins below ${ROOT:-/}" \
        "Install the container runtime and its CNI plugins first, or give --bin-dir and --conf-dir." "Nothing was changed."
    case $(sed -n 's/^ID=//p' "$ROOT/etc/os-release" 2>/dev/null) in
        bottlerocket | '"bottlerocket"') PLATFORM=Bottlerocket ;;
        talos | '"talos"') PLATFORM=Talos ;;
    esac
    GIVEN_BIN=$BIN_DIR GIVEN_CONF=$CONF_DIR
    BIN_DIR=${BIN_DIR:-$found_bin} CONF_DIR=${CONF_DIR:-$found_conf}
    # Only install asks if both are known: from the command line, or because install has recorded them.
    if [ "$COMMAND" = install ] || [ -z "$GIVEN_BIN" ] || [ -z "$GIVEN_CONF" ]; then ask_runtime; fi
    # GKE's /usr is read-only.
    [ -n "$TOOL_DIR" ] || case $PLATFORM in GKE) TOOL_DIR=$BIN_DIR ;; *) TOOL_DIR=/usr/local/bin ;; esac
}

# Prints the platform's remedy for a directory of plugins that can't be written.
other_directory() {
    case $PLATFORM in
        Bottlerocket | Talos)
            echo "$PLATFORM has no shell, and /etc/cni is made anew at each boot: use the DaemonSet in conf/kubernetes."
            ;;
        k3s) echo "k3s: --bin-dir /var/lib/rancher/k3s/data/cni, or .../data/current/bin before October 2024." ;;
        microk8s) echo "microk8s: --bin-dir /var/snap/microk8s/current/opt/cni/bin." ;;
        GKE) echo "GKE: --bin-dir /home/kubernetes/bin; /opt/cni/bin is read-only there." ;;
        OpenShift) echo "OpenShift: --bin-dir /var/lib/cni/bin; /usr and /opt are read-only there." ;;
        *) echo "Give the one that the runtime uses (containerd: bin_dir and conf_dir in config.toml) by --bin-dir, --conf-dir." ;;
    esac
}
