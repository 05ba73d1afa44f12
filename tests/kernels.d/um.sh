# shellcheck shell=bash
# Builds and runs a user-mode kernel for tests/kernels and benches/run from Debian's source package. The kernel
# is kept outside the tree, so that a new clone finds it. To be sourced after scripts/debian.sh. LOGS is a
# folder for the logs of builds and guests.

# shellcheck disable=SC2016 # the owner's home, not that of sudo
UM_CACHE=${SYMROUTE_CACHE:-$(as_owner bash -c 'echo "${XDG_CACHE_HOME:-$HOME/.cache}"')/symroute}/um
UM_CACHE=$(realpath -m "$UM_CACHE")
readonly UM_CACHE
readonly UM_CONFIG=tests/kernels.d/um.config
readonly UM_SUITE=bookworm UM_PACKAGE=linux-source-6.12
# Megabytes of memory of a guest. The memory is a file, which grows with its use.
readonly UM_MEMORY=2048
readonly UM_LIMIT=20m

# Prints the folder of the newest kernel that was built with this tree's options.
um_built() {
    local found
    found=$(compgen -G "$UM_CACHE/*-$(um_hash)/linux" | sort -V | tail -n 1) && [[ -n $found ]] && dirname "$found"
}

um_hash() {
    sha256sum <"$UM_CONFIG" | cut -c 1-16
}

um_release() {
    local folder
    folder=$(um_built) && cat "$folder/release"
}

# Builds the kernel, unless that has been done. Waits if another build is running.
um_fetch() {
    local lock status=0
    ! um_built >/dev/null || return 0
    as_owner mkdir -p "$UM_CACHE" || return 1
    exec {lock}>"$UM_CACHE/lock"
    flock --nonblock "$lock" || { echo "    waiting for another build in $UM_CACHE"; flock "$lock"; }
    um_built >/dev/null || um_build || status=$?
    exec {lock}>&-
    return "$status"
}

# Builds in a temporary folder, which gets its name when the kernel is complete. Removes an interrupted build.
um_build() (
    new=$UM_CACHE/new
    install_packages cc=gcc make=make flex=flex bison=bison bc=bc xz=xz-utils
    # This is not a program, so install_packages needs the path.
    [[ -e /usr/include/gelf.h ]] || install_packages /usr/include/gelf.h=libelf-dev
    as_owner rm -rf "$new" "$new.debs"
    free=$(df --output=avail -m "$UM_CACHE" | tail -n 1)
    [[ $free -ge 3000 ]] || die "a build of the kernel needs 3,000 MB in $UM_CACHE; $free are free" \
        "Make room there, or name another folder: SYMROUTE_CACHE=FOLDER"
    echo "    building a user-mode kernel in $UM_CACHE, once: some six minutes on two processors"
    um_source "$new" || die "can't download and unpack $UM_PACKAGE of Debian $UM_SUITE" \
        "Its mirror is $(debian_mirror); DEBIAN_MIRROR=ADDRESS names another."
    um_make allnoconfig KCONFIG_ALLCONFIG="$PWD/$UM_CONFIG" >"$LOGS/um.log" 2>&1 ||
        { cat "$LOGS/um.log" && die "can't make the kernel's configuration; make's words are above"; }
    um_check_config "$new/.config"
    um_make -j "$(nproc)" linux 2>"$LOGS/um.log" | um_progress ||
        { cat "$LOGS/um.log" && die "the user-mode kernel does not compile; make's words are above"; }
    um_keep "$new"
)

# um_source DIR: unpacks the source. Of drivers for real devices, it keeps only the files that Kconfig reads.
um_source() {
    debian_lists "$UM_SUITE" && debian_unpack "$UM_SUITE" amd64 "$1" "$UM_PACKAGE" &&
        as_owner tar -C "$1" -xf "$1/usr/src/$UM_PACKAGE.tar.xz" --strip-components=1 --wildcards \
            --exclude='*.rst' --exclude='*.dts*' --exclude='*/drivers/gpu/*.[ch]' --exclude='*/drivers/media/*.[ch]' \
            --exclude='*/drivers/net/ethernet/*.[ch]' --exclude='*/drivers/net/wireless/*.[ch]' --exclude='*/sound/*.c' &&
        as_owner rm -r "$1/usr/src"
}

# um_keep DIR: moves the kernel to a folder named after the package's version and the options.
um_keep() {
    local version hash kept=$1/kept
    version=$(apt_of apt-cache "$UM_SUITE" amd64 show --no-all-versions "$UM_PACKAGE" | sed -n 's/^Version: //p') &&
        hash=$(um_hash) && as_owner mkdir "$kept" &&
        as_owner strip -o "$kept/linux" "$1/linux" && as_owner cp "$1/include/config/kernel.release" "$kept/release" &&
        as_owner mv -T "$kept" "$UM_CACHE/$version-$hash" && as_owner rm -rf "$1"
}

um_make() {
    as_owner make -C "$UM_CACHE/new" ARCH=um "$@"
}

# Kconfig silently drops an option whose dependency is missing.
um_check_config() {
    local lost
    lost=$(grep '^CONFIG_' "$UM_CONFIG" | grep -vxFf "$1" | tr '\n' ' ') || return 0
    die "options of $UM_CONFIG that this kernel did not take: $lost" "Add there what they depend on, or leave them out."
}

# Prints a line for every 200 files.
um_progress() {
    awk '/^ *(CC|AR|LD|HOSTCC) / && ++files % 200 == 0 { print "    " files " of about 1,600 files"; fflush() }'
}

# Prints the first folder that has room for the guests' memory. The kernel maps code from that file, so the
# folder must not be mounted noexec.
um_memory_folder() {
    local needed=$(($1 * UM_MEMORY)) folder tried=() free
    for folder in "${TMPDIR:-/dev/shm}" /dev/shm /tmp /var/tmp "$UM_CACHE"; do
        free=$(df --output=avail -m "$folder" 2>/dev/null | tail -n 1)
        if [[ ! -w $folder ]]; then
            tried+=("$folder can't be written")
        elif [[ ,$(findmnt -n -o OPTIONS --target "$folder" | tail -n 1), == *,noexec,* ]]; then
            tried+=("$folder is mounted noexec")
        elif [[ $free -lt $needed ]]; then
            tried+=("$folder has $free MB")
        else
            printf '%s\n' "$folder"
            return
        fi
    done
    printf '       %s\n' "${tried[@]}" >&2
    die "no folder for the $needed MB of memory of $1 guests" "Name one with room: TMPDIR=FOLDER, or run fewer: SYMROUTE_GUESTS=1"
}

# um_guest JOB LOG: boots a guest, runs the job, and writes the console to LOG.
um_guest() {
    local job=$1 log=$2 alone=()
    # A guest has many processes, and some survive a kill of the first. A PID namespace ends them all.
    ! is_root || alone=(unshare --pid --fork --kill-child --mount-proc)
    # The kernel passes options that it does not know to PID 1 as variables.
    TMPDIR=$UM_FOLDER exec "${alone[@]}" timeout --foreground --kill-after=10 "$UM_LIMIT" "$(um_built)/linux" mem="${UM_MEMORY}M" \
        uml_dir="$LOGS/" umid="${job##*/}.um" rootfstype=hostfs rootflags=/ ro init="$PWD/tests/kernels.d/um-init" \
        con=null con0=null,fd:1 quiet panic=-1 oops=panic JOB="$job" BUSYBOX="$(command -v busybox)" END=poweroff \
        </dev/null >"$log"
}
