# shellcheck shell=bash
# Runs Debian's kernels for tests/kernels in qemu. To be sourced after scripts/debian.sh and aarch64.sh.

# Packages for an arm64 guest, which can't use this machine's files.
readonly ARM_PACKAGES=(bash busybox-static conntrack containernetworking-plugins coreutils dash findutils gawk grep
    ipset iproute2 iptables ipvsadm kmod libgcc-s1 mount netbase nftables procps sed strace util-linux)
readonly MEMORY=1536M
CACHE=$(realpath -m "${CARGO_TARGET_DIR:-target}/kernels")

# Prints the release of a version that has been downloaded, for instance 6.1.0-50-amd64.
qemu_release() {
    cat "$CACHE/$1/release" 2>/dev/null
}

# Downloads and unpacks the kernel of a version, unless that has been done.
qemu_fetch() {
    local version=$1 suite package found new=$CACHE/$1.new arch=amd64
    ! qemu_release "$version" >/dev/null || return 0
    [[ $version != arm64 ]] || arch=arm64
    IFS='=' read -r _ suite package < <(entry "$version")
    as_owner rm -rf "$new" "$CACHE/$version"
    debian_lists "$suite" || return 1
    found=$(apt_of apt-cache "$suite" "$arch" depends "$package" | sed -n 's/^ *Depends: *\(linux-image-[^ ]*\)$/\1/p' | head -n 1)
    [[ -n $found ]] || { echo "Debian $suite has no $package"; return 1; }
    debian_unpack "$suite" "$arch" "$new" "$found" && as_owner depmod -b "$new" "${found#linux-image-}" || return 1
    [[ $version != arm64 ]] || fetch_user_space "$suite" "$new/root" || return 1
    printf '%s\n' "${found#linux-image-}" | as_owner tee "$new/release" >/dev/null
    as_owner mv "$new" "$CACHE/$version"
    echo "    downloaded ${found#linux-image-}"
}

# fetch_user_space SUITE DIR
fetch_user_space() {
    local suite=$1 dir=$2 packages name
    mapfile -t packages < <(debian_closure "$suite" arm64 "${ARM_PACKAGES[@]}")
    debian_unpack "$suite" arm64 "$dir" "${packages[@]}" || return 1
    # Links that the package's installation would create.
    for name in iptables iptables-save iptables-restore ip6tables ip6tables-save ip6tables-restore; do
        as_owner ln -sf xtables-nft-multi "$dir/usr/sbin/$name"
    done
    as_owner mkdir -p "$dir"/{etc,root,tmp,run,proc,sys,dev,var/log}
    echo 'root:x:0:0:root:/root:/bin/sh' | as_owner tee "$dir/etc/passwd" >/dev/null
}

# initramfs VERSION JOB OUT: packs the files that a guest needs before it mounts the host's files.
initramfs() {
    local version=$1 job=$2 out=$3 files=$3.d name module number=100 busybox
    name=$(qemu_release "$version")
    busybox=$(command -v busybox)
    [[ $version != arm64 ]] || busybox=$CACHE/arm64/root/bin/busybox
    mkdir -p "$files/bin" "$files/modules"
    cp "$busybox" "$files/bin/busybox"
    install -m 755 tests/kernels.d/init "$files/init"
    cp "$job" "$files/job"
    : >"$files/shares"
    [[ $version != arm64 ]] || printf '%s\n' "$PWD" "$AARCH64_TARGET" >"$files/shares"
    for module in virtio_pci 9pnet_virtio 9p overlay; do
        modprobe --show-depends -d "$CACHE/$version" -S "$name" "$module"
    done | sed -n 's/^insmod \([^ ]*\).*/\1/p' | awk '!seen[$0]++' | while read -r module; do
        number=$((number + 1))
        if [[ $module == *.xz ]]; then
            xz -dc "$module" >"$files/modules/$number.ko"
        else
            cp "$module" "$files/modules/$number.ko"
        fi
    done
    (cd "$files" && find . | busybox cpio -o -H newc 2>/dev/null) >"$out"
    rm -rf "$files"
}

# qemu_guest VERSION JOB LOG: boots a guest, runs the job, and writes the console to LOG.
qemu_guest() {
    local version=$1 job=$2 log=$3 kernel=$CACHE/$1 machine
    local console=ttyS0 number=0 share
    # Use TCG even where KVM exists, because nested KVM is not reliable. The kernel options avoid work that is
    # slow under TCG and that no test needs.
    machine=(qemu-system-x86_64 -cpu max)
    local shares=("host=/" "modules=$kernel/lib/modules")
    if [[ $version == arm64 ]]; then
        # "max" would emulate pointer authentication, which is slow.
        machine=(qemu-system-aarch64 -machine virt -cpu cortex-a72) console=ttyAMA0
        shares=("host=$kernel/root" "modules=$kernel/lib/modules" "share1=$PWD" "share2=$AARCH64_TARGET")
    fi
    initramfs "$version" "$job" "$job.initramfs"
    for share in "${shares[@]}"; do
        number=$((number + 1))
        machine+=(-fsdev "local,id=f$number,path=${share#*=},security_model=none,readonly=on,multidevs=remap"
            -device "virtio-9p-pci,fsdev=f$number,mount_tag=${share%%=*}")
    done
    exec timeout --foreground "$LIMIT" "${machine[@]}" -accel tcg -smp 1 -m "$MEMORY" \
        -nodefaults -no-user-config -no-reboot -display none -serial "file:$log" \
        -kernel "$kernel/boot/vmlinuz-$(qemu_release "$version")" -initrd "$job.initramfs" \
        -append "console=$console quiet panic=-1 oops=panic random.trust_cpu=on mitigations=off apparmor=0 audit=0 no5lvl init_on_alloc=0 rcupdate.rcu_expedited=1" </dev/null
}
