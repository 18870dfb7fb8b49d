#!/usr/bin/env bash
# One load from many client machines: GNU parallel starts a loadgen on each of them over ssh, all start at the same
# moment, and `loadgen merge` adds their results. The clocks of the machines have to agree (NTP or PTP).
#
#   scripts/many_clients.sh HOSTS OUT FLAGS… URL
#   scripts/many_clients.sh hosts.txt results --rate 5000 --arrivals poisson --warmup 2s http://10.0.0.1:8080/
#
# HOSTS is a file with one host per line, as ssh takes it; a host in two lines runs two clients. OUT gets N.json and
# N.hlog from the client of line N, and sum.json and sum.hlog. Environment variables: LOADGEN (its path, here and on the
# hosts), SSH and SCP (with your own options), LEAD (seconds until the start).
set -euo pipefail
[ $# -ge 3 ] || { sed -n '2,10s/^# \{0,1\}//p' "$0"; exit 2; }
hosts=$1 out=$2
shift 2
export LOADGEN=${LOADGEN:-loadgen} SSH=${SSH:-ssh -o BatchMode=yes} SCP=${SCP:-scp -q -o BatchMode=yes}
export start=$(($(date +%s) + ${LEAD:-5})) out
export run=$start-$(hostname)-$$
mkdir -p "$out"

one_client() { # NUMBER HOST FLAGS… URL
  local number=$1 host=$2 hlog=/tmp/loadgen-$run-$1.hlog
  shift 2
  $SSH "$host" "$(printf '%q ' "$LOADGEN" --format json --hlog "$hlog" --start-at "$start" --seed "$number" "$@")" \
    </dev/null >"$out/$number.json"
  $SCP "$host:$hlog" "$out/$number.hlog"
  $SSH "$host" "rm $hlog" </dev/null
}
export -f one_client

flags=$(printf '%q ' "$@")
grep -v '^ *$' "$hosts" | parallel --will-cite --jobs 0 --halt now,fail=1 "set -e; one_client {#} {} $flags"
mapfile -t parts < <(seq -f "$out/%g.json" "$(grep -cv '^ *$' "$hosts")")
"$LOADGEN" merge --format json --hlog "$out/sum.hlog" "${parts[@]}" >"$out/sum.json"
"$LOADGEN" merge "${parts[@]}"
