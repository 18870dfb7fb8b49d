// A scenario on Node: the same JSON as for `scenario`, and each step is the call of Node's that it is named after.
//
//   node experiments/scenarios.js NAME          prints a line for each callback of scenarios/NAME.json, as
//                                               `scenario experiments/scenarios/NAME.json` does
//   node experiments/scenarios.js FILE.json     the same for a file
//   node experiments/scenarios.js --each FILE   FILE has a list of scenarios: prints a line with the order of each
'use strict';
const fs = require('fs');
const net = require('net');
const path = require('path');

let report = (phase, id) => fs.writeSync(1, JSON.stringify({ phase, id }) + '\n');
let left = 0; // callbacks that the scenario still waits for
let ended = () => {}; // what to do when there are none
let steps = new Map(); // of the scenario, by id
const timers = new Map(); // that are started, by the id of their step
const connections = []; // both ends of connections that wait for a scenario to use them
const used = []; // those that the scenario has used and not closed

const calls = {
  timer(step) {
    const ms = milliseconds(step.after);
    const run = callback('timers', step);
    if (step.repeat) timers.set(step.id, setInterval(() => { left += 1; run(); }, ms));
    else timers.set(step.id, setTimeout(() => { timers.delete(step.id); run(); }, ms));
  },
  timers({ id, count, within }) {
    const run = callback('timers', { id });
    const ms = Math.max(1, milliseconds(within));
    let waiting = count;
    for (let i = 0; i < count; i += 1) {
      setTimeout(() => { waiting -= 1; if (waiting === 0) run(); }, 1 + (i * 7919) % ms);
    }
  },
  immediate: (step) => setImmediate(callback('check', step)),
  nextTick: (step) => process.nextTick(callback('nextTick', step)),
  microtask(step) { // both of Node's ways to queue one
    const run = callback('microtask', step);
    if (step.id.length % 2 === 0) Promise.resolve().then(run);
    else queueMicrotask(run);
  },
  readFile: (step) => fs.readFile(__filename, callback('poll', step)),
  socket(step) {
    const connection = connections.pop();
    connection.own.once('data', callback('poll', step));
    connection.peer.write('x');
    used.push(connection);
  },
  close(step) {
    const { own } = connections.pop();
    own.once('close', callback('closing', step));
    own.destroy();
  },
  clear({ timer }) {
    if (!timers.has(timer)) return;
    clearTimeout(timers.get(timer));
    timers.delete(timer);
    left -= 1; // never to 0: the callback that clears counts until it has ended
  },
  again: ({ step }) => perform([steps.get(step)]),
  spin(step) {
    for (const until = performance.now() + milliseconds(step.for); performance.now() < until;);
  },
};

function callback(phase, { id, then = [] }) {
  left += 1;
  return () => {
    report(phase, id);
    perform(then);
    end();
  };
}

function end() {
  left -= 1;
  if (left === 0) ended();
}

function perform(all) {
  for (const step of all) {
    const [[kind, values]] = Object.entries(step);
    calls[kind](values);
  }
}

function milliseconds(duration) {
  const [, number, unit] = /^([\d.]+)(\D+)$/.exec(duration);
  return number * { ns: 1e-6, us: 1e-3, ms: 1, s: 1e3, m: 60e3, h: 3600e3 }[unit];
}

// Every step, each before those of its `then`.
function everyStep(all) {
  return all.flatMap((step) => [step, ...everyStep(Object.values(step)[0].then ?? [])]);
}

function load(scenario) {
  const all = everyStep(scenario.steps);
  const unknown = all.map((step) => Object.keys(step)[0]).find((kind) => !(kind in calls));
  if (unknown) {
    console.error(`${unknown}: Node has no call for it`);
    process.exit(1);
  }
  steps = new Map(all.map((step) => [Object.values(step)[0].id, step]));
  return all.filter((step) => step.socket || step.close).length; // connections that it needs
}

// Scenarios one after another. Each starts in the callback of a closed connection, with nothing else going on: behind the
// closing phase comes what comes behind the main module, the timers that are due and then a whole turn.
function each(scenarios, done) {
  const address = `\0acceptlab-scenarios-${process.pid}`; // of no file: abstract, unix(7)
  const accepted = [];
  const connected = [];
  let settle = () => {};
  const server = net.createServer((own) => {
    own.on('data', () => {});
    accepted.push(own);
    settle();
  });

  function connect(missing, then) {
    settle = () => {
      if (accepted.length < missing || connected.length < missing) return;
      settle = () => {};
      while (connected.length > 0) connections.push({ own: accepted.shift(), peer: connected.shift() });
      // Turns in which everything that the connections bring with them is over.
      setImmediate(() => setImmediate(() => setImmediate(then)));
    };
    for (let i = 0; i < missing; i += 1) {
      const peer = net.connect(address, () => { connected.push(peer); settle(); });
      peer.on('data', () => {});
    }
    settle();
  }

  function next(i) {
    if (i === scenarios.length) process.exit(0);
    const needed = load(scenarios[i]);
    connect(Math.max(0, needed + 1 - connections.length), () => {
      const { own } = connections.pop();
      own.once('close', () => {
        left = 1;
        ended = () => {
          done();
          connections.push(...used.splice(0));
          setImmediate(next, i + 1);
        };
        perform(scenarios[i].steps);
        end();
      });
      own.destroy();
    });
  }

  server.listen(address, () => next(0));
}

const [what, file] = process.argv.slice(2);
const read = (name) => JSON.parse(fs.readFileSync(name, 'utf8'));
if (what === '--each') {
  let order = [];
  report = (phase, id) => order.push([phase, id]);
  each(read(file), () => {
    fs.writeSync(1, JSON.stringify(order) + '\n');
    order = [];
  });
} else {
  const scenario = read(what.endsWith('.json') ? what : path.join(__dirname, 'scenarios', `${what}.json`));
  if (load(scenario) > 0) each([scenario], () => {}); // its connections have to be there before it starts
  else perform(scenario.steps);
}
