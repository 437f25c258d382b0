#!/bin/sh
# Turn the base into the system of every image: add what LightGBM needs; remove package managers, build tools, setuid bits
# and everything that differs between builds. Runs as root in the `system` stage.
set -eu

if ! ldconfig -p | grep -q 'libgomp\.so\.1 '; then
    apt-get update
    apt-get install --yes --no-install-recommends libgomp1
fi

printf 'kubeloop:x:65532:65532::/tmp:/usr/sbin/nologin\n' >>/etc/passwd
printf 'kubeloop:x:65532:\n' >>/etc/group

# Keep the interpreter and remove pip and other packages: ours are in /opt/venv.
python=$(command -v python3)
stdlib=$("$python" -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')
"$python" -c 'import site; print("\n".join(site.getsitepackages()))' | while read -r folder; do
    if [ -d "$folder" ]; then find "$folder" -mindepth 1 -delete; fi
done
rm -rf "$stdlib/ensurepip" "$stdlib/test" "$stdlib/lib2to3/tests" /usr/share/python-wheels
rm -f /usr/local/bin/pip* /usr/local/bin/wheel /usr/local/bin/idle* /usr/local/bin/2to3*

unwanted='apt|apt-utils|libapt-pkg[0-9.]+|binutils.*|build-essential|cpp(-[0-9]+)?|dpkg-dev|g\+\+(-[0-9]+)?|gcc(-[0-9]+)?'
unwanted="$unwanted|make|python3-pip|python3-setuptools|python3-wheel|python3-venv|python3\.[0-9]+-venv|python3?-.*-whl"
dpkg-query --show --showformat '${Package}\n' | grep -xE "$unwanted" | xargs -r \
    dpkg --purge --force-depends --force-remove-essential --force-remove-protected
# dpkg cannot purge itself. Its list of packages stays, for scanners of the image.
dpkg-query --listfiles dpkg | while read -r path; do
    if [ ! -d "$path" ]; then rm -f "$path"; fi
done
awk 'BEGIN { RS = ""; ORS = "\n\n" } !/^Package: dpkg\n/ && /\nStatus: install ok installed\n/' /var/lib/dpkg/status \
    >/tmp/status
find /var/lib/dpkg -mindepth 1 -delete
mv /tmp/status /var/lib/dpkg/status

find /usr/share/doc -type f ! -name copyright -delete
rm -rf /usr/share/man /usr/share/info /usr/share/locale /usr/share/lintian /usr/share/bug /usr/share/bash-completion
rm -rf /etc/apt /var/lib/apt /var/log /var/cache /root/.cache /etc/passwd- /etc/group- /etc/shadow- /etc/gshadow-
mkdir -p /var/log /var/cache
find / -xdev -type f -perm /6000 -exec chmod a-s {} +
find / -xdev ! -type l -perm -0002 ! -path /tmp -exec chmod o-w {} +

# The byte code is never checked against its source, since the layers' file times are set after it was compiled.
find / -xdev -name __pycache__ -prune -exec rm -rf {} +
PYTHONHASHSEED=0 "$python" -m compileall -q --invalidation-mode unchecked-hash "$stdlib"

find /tmp -mindepth 1 -delete
rm -rf /build
