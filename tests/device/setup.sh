#!/bin/sh
# Makes a directory in which the real aarch64 wheels of rknn-toolkit-lite2 run under user-mode
# emulation, over the stand-in library. About half a minute the first time; nothing the second.
#
#   setup.sh [DIR]      default: $TARS_RAG_DEVICE_DIR, then ~/.cache/tars-rag/device
#
# Needs: mmdebstrap qemu-user-static gcc-aarch64-linux-gnu (Debian), pip.
# Prints the directory. Layout:
#   board-rk3588/   arm64 root file system with a device tree and the stand-in library
#   board-nolib/    the same without the library      board-junk/   with a library that is not one
#   board-laptop/   no device tree, no library
#   board-docker/   a container whose render node has another number
#   site-VERSION/   Python packages with that version of the wheel
#   python-BOARD    runs that board's python3.11
set -eu

here=$(cd "$(dirname "$0")" && pwd)
dir=${1:-${TARS_RAG_DEVICE_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/tars-rag/device}}
python=${PYTHON:-python3}
for tool in mmdebstrap qemu-aarch64-static aarch64-linux-gnu-gcc; do
    command -v "$tool" >/dev/null || { echo "setup.sh: $tool is missing" >&2; exit 3; }
done

mkdir -p "$dir"
exec 9>"$dir/lock"
flock 9
stamp=$(cat "$here/setup.sh" "$here/standin.c" | sha256sum | cut -c1-16)
if [ "$(cat "$dir/stamp" 2>/dev/null || true)" = "$stamp" ]; then
    echo "$dir"
    exit 0
fi
rm -rf "$dir"/board-* "$dir"/site-* "$dir"/python-* "$dir/stamp" "$dir/root"

packages=python3,libpython3-stdlib,libstdc++6,libgomp1,libgcc-s1,zlib1g,libexpat1,libffi8
packages=$packages,libbz2-1.0,liblzma5,libsqlite3-0,libssl3,libuuid1
mmdebstrap --quiet --mode=auto --variant=extract --architectures=arm64 --include="$packages" \
    bookworm "$dir/root" >&2

platforms=""
for n in 2_17 2014 2_28; do
    name=manylinux_$n; [ "$n" = 2014 ] && name=manylinux2014
    platforms="$platforms --platform ${name}_aarch64"
done
for version in 2.3.2 2.5.0; do
    # shellcheck disable=SC2086
    "$python" -m pip install --quiet --no-warn-conflicts --disable-pip-version-check \
        --target "$dir/site-$version" --only-binary=:all: $platforms --python-version 311 \
        --implementation cp --abi cp311 --abi abi3 --abi none \
        "rknn-toolkit-lite2==$version" numpy pydantic pytest pytest-timeout >&2
done

board() { cp -al "$dir/root" "$dir/board-$1"; }
for name in rk3588 nolib junk laptop; do
    board "$name"
    root=$dir/board-$name
    if [ "$name" != laptop ]; then
        mkdir -p "$root/proc/device-tree" "$root/dev/dri"
        printf 'rockchip,rk3588-orangepi-5-max\0rockchip,rk3588\0' >"$root/proc/device-tree/compatible"
        : >"$root/dev/dri/renderD129"
    fi
    printf '#!/bin/sh\nexec qemu-aarch64-static -L "%s" "%s/usr/bin/python3.11" "$@"\n' \
        "$root" "$root" >"$dir/python-$name"
    chmod +x "$dir/python-$name"
done
aarch64-linux-gnu-gcc -O1 -Wall -Wextra -Werror -fPIC -shared \
    -o "$dir/board-rk3588/usr/lib/librknnrt.so" "$here/standin.c" -lm
cp -al "$dir/board-rk3588" "$dir/board-docker"
: >"$dir/board-docker/.dockerenv"
rm "$dir/board-docker/dev/dri/renderD129"
: >"$dir/board-docker/dev/dri/renderD130"
sed s/rk3588/docker/g "$dir/python-rk3588" >"$dir/python-docker"
chmod +x "$dir/python-docker"
echo "not a library" >"$dir/board-junk/usr/lib/librknnrt.so"
rm -rf "$dir/root"
echo "$stamp" >"$dir/stamp"
echo "$dir"
