# shellcheck shell=bash
# tests/install package: installs, upgrades and removes the Debian package on a node with dpkg. To be
# sourced.

# Sets PACKAGE to the package for this machine. Builds a release if SYMROUTE_DIST is not set.
get_release() {
    local version
    version=$(crate_version)
    if [[ -z ${SYMROUTE_DIST-} ]]; then
        scripts/release
        SYMROUTE_DIST=${CARGO_TARGET_DIR:-$PWD/target}/dist/$version
    fi
    PACKAGE=$(readlink -f "$SYMROUTE_DIST/symroute_${version}_amd64.deb")
    export SYMROUTE_DIST PACKAGE
}

# with_usr COMMAND...: runs the command with a writable /usr. Changes stay for the next command.
with_usr() {
    local dir=$WORK/layers/usr
    mkdir -p "$dir"/{upper,work,local}
    mountpoint -q "$dir/local" || mount --bind /usr/local/bin "$dir/local"
    # shellcheck disable=SC2016 # for the inner shell
    unshare --mount --propagation private bash -c 'dir=$1; shift
        mount -t overlay overlay /usr -o "lowerdir=/usr,upperdir=$dir/upper,workdir=$dir/work" &&
            mount --bind "$dir/local" /usr/local/bin && exec "$@"' - "$dir" "$@"
}

# Builds a package with a later version. Its programs have one more byte at the end.
newer_package() {
    local dir=$WORK/newer-package name
    dpkg-deb -R "$PACKAGE" "$dir" || return 1
    for name in symroute symroutectl; do echo >>"$dir/usr/lib/symroute/$name"; done
    sed -i 's/^Version: .*/Version: 99.0.0/' "$dir/DEBIAN/control"
    dpkg-deb --root-owner-group --build "$dir" "$WORK/newer.deb"
}

unpacks() {
    with_usr dpkg -i "$PACKAGE" >"$WORK/said" 2>&1 && grep -q "run: /usr/lib/symroute/install.sh install" "$WORK/said"
}

removal_is_refused() {
    local before
    before=$(whole_node)
    ! with_usr dpkg -r symroute >"$WORK/said" 2>&1 && grep -q "pods need symroute still" "$WORK/said" &&
        diff <(echo "$before") <(whole_node) && dpkg -s symroute | grep -q '^Status: .* installed$'
}

# A killed uninstall may have removed the plugin but not the tool.
killed_removal() {
    with_usr dpkg -i "$PACKAGE" && with_usr /usr/lib/symroute/install.sh install --no-systemd --config "$WORK/entry" &&
        "$SYMROUTE_CTL" conflist remove && rm /opt/cni/bin/symroute && with_usr dpkg -r symroute && nothing_is_left
}

# On a node with the DaemonSet, the agent has installed the plugin, and install.sh has recorded nothing.
of_a_daemonset() {
    install -m 755 "$SYMROUTE_BIN" /opt/cni/bin/symroute
    echo >>/opt/cni/bin/symroute
    cp /opt/cni/bin/symroute "$WORK/of-the-agent"
    with_usr dpkg -i "$PACKAGE" && cmp "$WORK/of-the-agent" /opt/cni/bin/symroute && with_usr dpkg -r symroute &&
        cmp "$WORK/of-the-agent" /opt/cni/bin/symroute && rm /opt/cni/bin/symroute
}

package() {
    conflist bridge bare
    whole_node >"$WORK/before"
    echo '{"type": "symroute", "uplinks": ["eth0", "eth1"]}' >"$WORK/entry"
    works "the package unpacks, and says what comes next" unpacks
    works "it has changed nothing on the node" same_node "$WORK/before"
    works "its install.sh installs" with_usr /usr/lib/symroute/install.sh install --no-systemd --config "$WORK/entry"
    works "status knows the programs" with_usr /usr/lib/symroute/install.sh status --no-systemd
    works "a pod starts" libcni_start packaged
    works "and answers by eth1" until_ reached packaged
    works "a newer package" newer_package
    works "brings the node up to date" with_usr dpkg -i "$WORK/newer.deb"
    works "they are its programs" installed_are "$WORK/newer-package/usr/lib/symroute"
    works "the pod answers still" reached packaged
    works "the removal is refused while a pod needs the plugin" removal_is_refused
    "$SYMROUTE_CTL" conflist remove >"$WORK/said"
    works "the pod ends" libcni_stop packaged
    works "the removal takes symroute off the node" with_usr dpkg -r symroute
    works "nothing of the package is left" nothing_is_left
    conflist bridge bare
    works "the node is as before the package" same_node "$WORK/before"
    works "a removal completes an uninstall that was killed" killed_removal
    conflist bridge bare
    works "the node is as before that" same_node "$WORK/before"
    works "the plugin of a DaemonSet stays" of_a_daemonset
    works "the node is as before that, too" same_node "$WORK/before"
}
