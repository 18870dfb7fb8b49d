// Node's own cluster, measured beside ours; the same program also runs as a worker of ours.
//
// Who accepts: with `--policy rr` the primary, which passes each connection to the next worker that has acknowledged
// its last one; with `--policy none` the workers, from the listening socket that the primary has sent them. Who serves:
// the worker. Who balances: the primary, or with `none` the kernel. A worker that gets SIGUSR2 behaves as if it had met a
// fatal error: it tells the primary, answers the open requests, and ends (node-contract.js).
//
//     node experiments/node-cluster.js --workers 4 --policy rr --listen 127.0.0.1:8080
//     cluster --workers 4 --schedule rr -- node experiments/node-cluster.js --listen 127.0.0.1:8080

'use strict';

const { run } = require('./node-contract.js');

run({}, ({ answer }) => (request, response) => answer(response));
