#!/usr/bin/env bash
# Installs the servers of other projects that lessons 27 and 28 put beside ours (experiments/contenders/): nginx, HAProxy,
# Apache and puma from Debian, gunicorn and uvicorn from PyPI into a folder of their own, PM2 from npm. Whatever is missing is
# skipped there with a line. Starts no service, now or at the next boot. Debian, as root; Node is in install_clients.sh.
set -euo pipefail
readonly VENV=/opt/acceptlab-contenders POLICY=/usr/sbin/policy-rc.d
# Debian's, which every user may run.
readonly PYTHON=/usr/bin/python3
missing=()
for pair in nginx:nginx haproxy:haproxy apache2:apache2-bin puma:puma; do
  command -v "${pair%%:*}" >/dev/null || command -v "/usr/sbin/${pair%%:*}" >/dev/null || missing+=("${pair##*:}")
done
if ! command -v gunicorn >/dev/null || ! command -v uvicorn >/dev/null; then
  $PYTHON -c 'import ensurepip' 2>/dev/null || missing+=(python3-venv)
  python_servers=missing
fi
if [ ${#missing[@]} -gt 0 ] || [ -n "${python_servers:-}" ]; then
  [ "$(id -u)" -eq 0 ] || { echo "missing: ${missing[*]} ${python_servers:+gunicorn uvicorn}; run it as root"; exit 1; }
fi
if [ ${#missing[@]} -gt 0 ]; then
  command -v apt-get >/dev/null || { echo "missing: ${missing[*]}"; exit 1; }
  # Debian starts a server when it is installed, unless this program says 101, and again at each boot, unless it is disabled.
  if [ ! -e $POLICY ]; then
    trap 'rm -f $POLICY' EXIT
    printf '#!/bin/sh\nexit 101\n' >$POLICY
    chmod +x $POLICY
  fi
  apt-get update -qq >/dev/null
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
  for service in nginx haproxy; do
    [[ " ${missing[*]} " != *" $service "* ]] || systemctl --quiet disable $service 2>/dev/null || true
  done
fi
if [ -n "${python_servers:-}" ]; then
  $PYTHON -m venv --clear $VENV
  $VENV/bin/pip install --quiet --disable-pip-version-check 'gunicorn[gevent]' 'uvicorn[standard]'
  ln -sf $VENV/bin/gunicorn $VENV/bin/uvicorn /usr/local/bin/
fi
command -v pm2 >/dev/null || ! command -v npm >/dev/null || npm install --global --silent --no-audit --no-fund pm2@7 ||
  echo "pm2 was not installed: lesson 28 leaves it out"
[ ${#missing[@]} -gt 0 ] || [ -n "${python_servers:-}" ] || { echo "all of them are there"; exit 0; }
echo "installed: ${missing[*]} ${python_servers:+gunicorn uvicorn}"
