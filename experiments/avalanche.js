// The avalanche (雪崩, cache stampede): a cache entry expires, and every request that needs it queries the database.
//
// Who accepts, serves and balances: as in node-cluster.js. The entry is valid for `--ttl`; a request that finds it expired
// queries the database, which belongs to the worker and executes one query at a time, for `--query` each. So the queries
// wait for one another, and the last waits for all. With `--once` a request that comes during a query waits for that query,
// as with the `once` of the library EventProxy.
//
//     node experiments/avalanche.js --workers 1 --ttl 1s
//     node experiments/avalanche.js --workers 1 --ttl 1s --once
//     loadgen --connections 64 --duration 5s http://127.0.0.1:8080/

'use strict';

const { setTimeout } = require('node:timers/promises');
const { milliseconds, run } = require('./node-contract.js');

const options = {
  ttl: { type: 'string', default: '1s' },
  query: { type: 'string', default: '20ms' },
  once: { type: 'boolean', default: false },
};

run(options, ({ flags, answer, count }) => {
  const [ttl, cost] = [milliseconds(flags.ttl), milliseconds(flags.query)];
  let entry;
  let goodUntil = -Infinity;
  let isMissed = false;
  let database = Promise.resolve();
  let underWay;

  const query = () => {
    count({ queries: 1 });
    database = database.then(() => setTimeout(cost, 'the entry\n'));
    return database;
  };

  const queryOnce = () => {
    underWay ??= query().finally(() => { underWay = undefined; });
    return underWay;
  };

  const find = async () => {
    if (performance.now() < goodUntil) {
      return entry;
    }
    count({ expiries: Number(!isMissed) });
    isMissed = true;
    entry = await (flags.once ? queryOnce() : query());
    goodUntil = performance.now() + ttl;
    isMissed = false;
    return entry;
  };

  return async (request, response) => answer(response, await find());
});
