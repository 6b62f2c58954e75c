#!/bin/sh
# Install the packages that this machine lacks: `host-setup.sh LIST [qemu|lint]`, where each line
# of LIST begins with a Debian package and what it is for; those for qemu or lint only if named.
# Prints what it will install first; does nothing when all are there.
set -eu

missing=
while read -r package need rest; do
	case $package in '' | '#'*) continue ;; esac
	case $need in qemu | lint) [ "${2-}" = "$need" ] || continue ;; esac
	status=$(dpkg-query -W -f '${Status}' "$package" 2>/dev/null || true)
	[ "$status" = "install ok installed" ] || missing="$missing $package"
done < "$1"
[ -n "$missing" ] || exit 0

if ! command -v apt-get > /dev/null; then
	echo "emu: this machine has no apt; install the contents of these Debian packages:$missing" >&2
	exit 3
fi
echo "installing host packages (apt):$missing"
if [ "$(id -u)" = 0 ]; then
	sudo=
elif command -v sudo > /dev/null; then
	sudo=sudo
	echo "with sudo, since this is not root"
else
	echo "emu: not root, and no sudo here; as root: apt-get install$missing" >&2
	exit 3
fi
# The lists may be older than the mirror: refresh them when what they name has gone.
install() {
	$sudo env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 install --yes --quiet=2 \
		--no-install-recommends $missing > /dev/null
}
$sudo apt-get update --quiet=2 && install || {
	echo "emu: apt could not install:$missing" >&2
	exit 3
}
