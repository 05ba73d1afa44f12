# shellcheck shell=bash
# Builds for aarch64 on x86-64. To be sourced after debian.sh.

readonly AARCH64=aarch64-unknown-linux-gnu
# If rustup has no standard library for this target, the script unpacks a compiler of Debian here.
readonly RUST_SUITE=bookworm RUST_ROOT=$DEBIAN/rust

# Installs the linker and the compiler that aarch64_cargo needs.
need_aarch64() {
    local needed=(aarch64-linux-gnu-gcc=gcc-aarch64-linux-gnu) library=/usr/aarch64-linux-gnu/lib/libc.a
    # install_packages looks for programs, and this file is none.
    [[ -e $library ]] || needed+=("$library=libc6-dev-arm64-cross")
    install_packages "${needed[@]}"
    need_cargo
    [[ -x $RUST_ROOT/rustc ]] || has_own_library || fetch_rust
}

has_own_library() {
    compgen -G "$(as_owner rustc --print target-libdir --target "$AARCH64")/libstd-*.rlib" >/dev/null
}

fetch_rust() {
    local new=$RUST_ROOT.new files
    echo "    downloading a Rust compiler with a library for aarch64 (Debian $RUST_SUITE)"
    as_owner rm -rf "$new"
    debian_lists "$RUST_SUITE" || return 1
    # The machine's own C library has to be used.
    files=$(debian_closure "$RUST_SUITE" amd64 libstd-rust-web-dev | grep -v '^libc6$') || return 1
    # shellcheck disable=SC2086 # one word per package
    debian_unpack "$RUST_SUITE" amd64 "$new" rustc-web libstd-rust-web-dev:arm64 $files || return 1
    as_owner tee "$new/rustc" >/dev/null <<'TEXT'
#!/bin/sh
here=$(dirname "$0")
LD_LIBRARY_PATH=$here/usr/lib/x86_64-linux-gnu:$here/lib/x86_64-linux-gnu exec "$here/usr/bin/rustc" "$@"
TEXT
    as_owner chmod +x "$new/rustc"
    as_owner rm -rf "$RUST_ROOT"
    as_owner mv "$new" "$RUST_ROOT"
}

# Builds the two static programs in $AARCH64_TARGET/$AARCH64/release.
build_aarch64() {
    need_aarch64
    aarch64_cargo build --release --bins --config conf/cargo-static.toml
}

# aarch64_cargo ARGUMENT...: runs cargo with the compiler and the linker for aarch64. The files are below
# $AARCH64_TARGET/$AARCH64, because files of two compilers must not be mixed.
AARCH64_TARGET=$(realpath -m "${CARGO_TARGET_DIR:-target}/aarch64")
readonly AARCH64_TARGET
aarch64_cargo() (
    unset RUSTFLAGS CARGO_ENCODED_RUSTFLAGS
    [[ ! -x $RUST_ROOT/rustc ]] || export RUSTC=$RUST_ROOT/rustc
    export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
    as_owner cargo "$@" --locked --target "$AARCH64" --target-dir "$AARCH64_TARGET"
)
