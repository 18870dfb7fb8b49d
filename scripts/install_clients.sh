#!/usr/bin/env bash
# Installs the clients of other projects that the tests and experiments compare with: Debian, as root.
set -euo pipefail
missing=()
for pair in wrk:wrk ab:apache2-utils siege:siege h2load:nghttp2-client curl:curl; do
  command -v "${pair%%:*}" >/dev/null || missing+=("${pair##*:}")
done
[ ${#missing[@]} -eq 0 ] && { echo "wrk, ab, siege, h2load and curl are there"; exit 0; }
command -v apt-get >/dev/null && [ "$(id -u)" -eq 0 ] || { echo "missing: ${missing[*]}"; exit 1; }
apt-get update -qq >/dev/null
apt-get install -y -qq "${missing[@]}" >/dev/null
echo "installed: ${missing[*]}"
