# What the scripts of this folder share: their command line. Each starts one server of another project with a configuration of
# ours, as a lesson's matrix names it:
#
#     experiments/contenders/nginx reuseport --workers 2 --listen 127.0.0.1:8080
#
# Its own options stand in `own`. Files that the server needs go to `folder`, which the lab removes; started by hand, it is
# below /tmp. All of them give the answer of our servers: 64 bytes of text/plain that begin with the worker and its pid, where
# the server knows them. Its worker has the last three digits of the pid for a number, because most servers give it no other.
# No access log, connections kept for 75 s and for any number of requests, a backlog of 4096, and otherwise what the project
# recommends.
set -euo pipefail
PATH=$PATH:/usr/sbin
here=$(cd "$(dirname "$0")" && pwd)
workers=1 listen=127.0.0.1:8080 own=()
while [ $# -gt 0 ]; do
  case $1 in
    --workers) workers=$2 && shift 2 ;;
    --listen) listen=$2 && shift 2 ;;
    --version) version && exit ;;
    *) own+=("$1") && shift ;;
  esac
done
host=${listen%:*} port=${listen##*:}
folder=${CONTENDER_FOLDER:-$(mktemp -d)}
# Behind `handled by worker 345, pid 12345` and the end of its line.
readonly DOTS=..............................
