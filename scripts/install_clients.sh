#!/usr/bin/env bash
# Installs the programs of other projects that the tests and experiments use: clients to compare with, Node for the
# cluster's workers, what starts loadgen on many machines, tools that look into a process or hold a terminal, a browser for
# the report, the standard reader of .hlog files, and PM2. A test that lacks one of them ends as inconclusive. Debian, as root.
set -euo pipefail
missing=()
for pair in wrk:wrk ab:apache2-utils siege:siege h2load:nghttp2-client curl:curl node:nodejs \
  strace:strace gdb:gdb tmux:tmux setpriv:util-linux \
  chromium:chromium sshd:openssh-server ssh:openssh-client parallel:parallel ip:iproute2; do
  command -v "${pair%%:*}" >/dev/null || command -v "/usr/sbin/${pair%%:*}" >/dev/null || missing+=("${pair##*:}")
done
reader() { python3 -c 'import hdrh.log' 2>/dev/null; }
reader || command -v pip3 >/dev/null || missing+=(python3-pip)
# npm's process manager, which lesson 20 measures. Not from Debian, so its lack makes no test inconclusive.
if ! command -v pm2 >/dev/null; then
  if command -v npm >/dev/null; then
    npm install --global --silent --no-audit --no-fund pm2@7 || echo "pm2 was not installed: lesson 20 measures pm only"
  else
    echo "npm is not installed, so pm2 is not: lesson 20 measures pm only"
  fi
fi
[ ${#missing[@]} -eq 0 ] && reader && { echo "all of them are there"; exit 0; }
if [ ${#missing[@]} -gt 0 ]; then
  command -v apt-get >/dev/null && [ "$(id -u)" -eq 0 ] || { echo "missing: ${missing[*]}"; exit 1; }
  apt-get update -qq >/dev/null
  apt-get install -y -qq "${missing[@]}" >/dev/null
fi
# Debian's Python refuses pip without this flag, and an older pip does not know the flag.
reader || pip3 install --quiet --break-system-packages hdrhistogram 2>/dev/null || pip3 install --quiet hdrhistogram
echo "installed: ${missing[*]} hdrhistogram"
