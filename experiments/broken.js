// A program with a fault, for tests of its master.
//
// Who accepts, serves and balances: as in node-cluster.js. With `--die-at N` each process ends at its N-th request, without
// an answer and without a message to its master. With `--listeners N` only the first N processes that are started listen;
// a later one behaves like a new version that never becomes ready.
//
//     cluster --workers 2 --max-restarts 5 -- node experiments/broken.js --die-at 100
//     cluster --workers 2 --listen-timeout 1s -- node experiments/broken.js --listeners 2    (and kill -HUP the master)

'use strict';

const cluster = require('node:cluster');
const { run } = require('./node-contract.js');

run({ 'die-at': { type: 'string' }, listeners: { type: 'string' } }, ({ flags, answer }) => {
  let left = Number(flags['die-at'] ?? Infinity);
  const serve = (request, response) => {
    left -= 1;
    if (left <= 0) {
      process.exit(1);
    }
    answer(response);
  };
  return cluster.worker.id > Number(flags.listeners ?? Infinity) ? undefined : serve;
});
