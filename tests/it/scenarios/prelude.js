// What the translated scenarios call. Each call starts one thing of Node's and notes when its callback runs.
'use strict';
const fs = require('fs');
const net = require('net');

let order = []; // of the scenario that runs: [phase, id]
let left = 0; // callbacks that it still waits for
let ended = () => {}; // what to do when there are none
const timers = new Map();
const connections = []; // both ends of connections that wait for a scenario to use them
const used = []; // those that the scenario has used and not closed

function callback(phase, id, then) {
  left += 1;
  return () => {
    order.push([phase, id]);
    then();
    end();
  };
}

function end() {
  left -= 1;
  if (left === 0) ended();
}

function timer(id, ms, then) {
  const run = callback('timers', id, then);
  timers.set(id, setTimeout(() => { timers.delete(id); run(); }, ms));
}

function interval(id, ms, then) {
  left += 1;
  timers.set(id, setInterval(() => { order.push(['timers', id]); then(); }, ms));
}

function clear(id) {
  if (!timers.has(id)) return;
  clearTimeout(timers.get(id));
  timers.delete(id);
  left -= 1; // never to 0: the callback that clears counts until it has ended
}

function immediate(id, then) { setImmediate(callback('check', id, then)); }
function nextTick(id, then) { process.nextTick(callback('nextTick', id, then)); }
function microtask(id, then) { queueMicrotask(callback('microtask', id, then)); }
function promise(id, then) { Promise.resolve().then(callback('microtask', id, then)); }
function readFile(id, then) { fs.readFile(__filename, callback('poll', id, then)); }

function socket(id, then) {
  const connection = connections.pop();
  connection.own.once('data', callback('poll', id, then));
  connection.peer.write('x');
  used.push(connection);
}

function close(id, then) {
  const connection = connections.pop();
  connection.own.once('close', callback('closing', id, then));
  connection.own.destroy();
}

function spin(ms) {
  for (const until = performance.now() + ms; performance.now() < until;);
}

// One scenario as the main module.
function main(steps) {
  ended = () => console.log(JSON.stringify(order));
  left = 1;
  steps();
  end();
}

// Many scenarios, one after another. Each starts in the callback of a closed connection, with nothing else going on:
// behind the closing phase comes what comes behind the main module, the timers that are due and then a whole turn.
function each(scenarios) {
  const path = `\0acceptlab-scenarios-${process.pid}`; // of no file: abstract, unix(7)
  const accepted = [];
  const server = net.createServer((own) => {
    own.on('data', () => {});
    accepted.push(own);
    settle();
  });
  const connected = [];
  let settle = () => {};

  function connect(missing, then) {
    settle = () => {
      if (accepted.length < missing || connected.length < missing) return;
      settle = () => {};
      while (connected.length > 0) connections.push({ own: accepted.shift(), peer: connected.shift() });
      // Turns in which everything that the connections bring with them is over.
      setImmediate(() => setImmediate(() => setImmediate(then)));
    };
    for (let i = 0; i < missing; i += 1) {
      const peer = net.connect(path, () => { connected.push(peer); settle(); });
      peer.on('data', () => {});
    }
    settle();
  }

  function next(i) {
    if (i === scenarios.length) process.exit(0);
    const [sockets, steps] = scenarios[i];
    connect(Math.max(0, sockets + 1 - connections.length), () => {
      const { own } = connections.pop();
      own.once('close', () => {
        order = [];
        left = 1;
        ended = () => {
          fs.writeSync(1, JSON.stringify(order) + '\n');
          connections.push(...used.splice(0));
          setImmediate(next, i + 1);
        };
        steps();
        end();
      });
      own.destroy();
    });
  }

  server.listen(path, () => next(0));
}
