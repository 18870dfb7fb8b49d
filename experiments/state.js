// A value that all workers need and another process changes: each worker reads it itself, or a notifier sends it.
//
// Who accepts, serves and balances: as in node-cluster.js. With `--poll DUR` every worker reads the file after each DUR: N
// workers read N times as often, and learn of a new value after half of DUR on average. Without it a worker waits for the
// message `{act: 'notify', path, value}` of a notifier: one process that reads for all (`cluster --notify FILE`). The value
// is the time at which it was written, in nanoseconds of CLOCK_MONOTONIC, so a worker that gets it knows how old it is.
//
//     cluster --workers 8 -- node experiments/state.js --file /dev/shm/value --poll 100ms
//     cluster --workers 8 --notify /dev/shm/value -- node experiments/state.js
//     awk '{ printf "%.0f\n", $1 * 1e9 }' /proc/uptime > /dev/shm/value; curl localhost:8080

'use strict';

const { readFile } = require('node:fs/promises');
const { setInterval } = require('node:timers/promises');
const { milliseconds, run } = require('./node-contract.js');

const options = { file: { type: 'string', default: '/dev/shm/acceptlab-value' }, poll: { type: 'string' } };

run(options, ({ flags, answer, count }) => {
  const born = process.hrtime.bigint();
  let value = '';

  const learn = (text) => {
    value = text;
    // A value written before this process existed is not a change.
    const written = BigInt(text);
    if (written > born) {
      count({ updates: 1, stale_us: Number(process.hrtime.bigint() - written) / 1e3 });
    }
  };

  const poll = async (every) => {
    // The timer does not keep the worker alive when it has to end.
    for await (const _ of setInterval(every, undefined, { ref: false })) {
      // Without a file there is no value yet.
      const text = await readFile(flags.file, 'utf8').catch(() => '');
      count({ polls: 1, idle_polls: Number(text === value) });
      if (text !== value) {
        learn(text);
      }
    }
  };

  if (flags.poll) {
    poll(milliseconds(flags.poll));
  }
  process.on('message', (message) => {
    if (message.act === 'notify' && message.value) {
      learn(message.value);
    }
  });
  return (request, response) => answer(response, value);
});
