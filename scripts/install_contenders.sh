#!/usr/bin/env bash
# Installs the servers of other projects that lessons 27 to 31 start (experiments/contenders/): nginx, HAProxy, Apache
# and puma from Debian, gunicorn and uvicorn from PyPI into a folder of their own, in the versions of our records, PM2
# from npm. Whatever is missing is skipped there with a line. Starts no service, now or at the next boot. Debian, as
# root; Node is in install_clients.sh.
set -euo pipefail
readonly VENV=/opt/acceptlab-contenders POLICY=/usr/sbin/policy-rc.d
# Debian's, which every user may run.
readonly PYTHON=/usr/bin/python3
missing=() python_servers=
for pair in nginx:nginx haproxy:haproxy apache2:apache2-bin puma:puma; do
  command -v "${pair%%:*}" >/dev/null || command -v "/usr/sbin/${pair%%:*}" >/dev/null || missing+=("${pair##*:}")
done
if ! [ -x $VENV/bin/gunicorn ] || ! [ -x $VENV/bin/uvicorn ]; then
  $PYTHON -c 'import ensurepip' 2>/dev/null || missing+=(python3-venv)
  python_servers="gunicorn uvicorn"
fi
if [ ${#missing[@]} -gt 0 ] || [ -n "$python_servers" ]; then
  [ "$(id -u)" -eq 0 ] || { echo "missing: ${missing[*]} $python_servers; run it as root"; exit 1; }
fi
if [ ${#missing[@]} -gt 0 ]; then
  command -v apt-get >/dev/null || { echo "missing: ${missing[*]}"; exit 1; }
  # Debian starts a server when it is installed, unless this program says 101, and again at each boot, unless it is
  # disabled. One that is there already is put back.
  [ ! -e $POLICY ] || mv $POLICY $POLICY.before
  trap 'rm -f $POLICY; [ ! -e $POLICY.before ] || mv $POLICY.before $POLICY' EXIT
  printf '#!/bin/sh\n# Of install_contenders.sh, while it runs: no service is started.\nexit 101\n' >$POLICY
  chmod +x $POLICY
  apt-get update -qq >/dev/null
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
  for service in nginx haproxy; do
    [[ " ${missing[*]} " != *" $service "* ]] || systemctl --quiet disable $service 2>/dev/null ||
      [ ! -e /etc/systemd/system/multi-user.target.wants/$service.service ] ||
      echo "$service could not be disabled: it starts at the next boot"
  done
fi
if [ -n "$python_servers" ]; then
  $PYTHON -m venv --clear $VENV
  # Both with the parts in C that their projects have.
  $VENV/bin/pip install --quiet --disable-pip-version-check 'gunicorn[gevent,fast]==26.2.0' 'uvicorn[standard]==0.54.0'
  for server in gunicorn uvicorn; do
    [ -e /usr/local/bin/$server ] && [ ! -L /usr/local/bin/$server ] || ln -sf $VENV/bin/$server /usr/local/bin/
  done
fi
pm2=
if ! command -v pm2 >/dev/null; then
  if command -v npm >/dev/null && npm install --global --silent --no-audit --no-fund pm2@7; then
    pm2=pm2
  else
    echo "pm2 was not installed: its lines in lesson 28 are skipped"
  fi
fi
installed="${missing[*]} $python_servers $pm2"
[ -n "${installed// /}" ] && echo "installed: $installed" || echo "all of them are there"
