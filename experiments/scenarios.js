// The scenarios of scenarios/ in Node's words: node experiments/scenarios.js NAME prints a line for each callback, as
// `event-loop --scenario experiments/scenarios/NAME.json` does.
'use strict';
const fs = require('fs');

const say = (id) => () => console.log(JSON.stringify({ id }));
const spin = (ms) => { for (const end = Date.now() + ms; Date.now() < end;); };

const scenarios = {
  'timer-or-immediate': () => {
    setTimeout(say('timer'), 0);
    setImmediate(say('immediate'));
  },
  'after-a-read': () => {
    fs.readFile(__filename, () => {
      say('file')();
      setTimeout(say('timer'), 0);
      setImmediate(say('immediate'));
    });
  },
  'between-callbacks': () => {
    setTimeout(() => {
      say('timer-1')();
      queueMicrotask(() => { say('microtask-1')(); process.nextTick(say('tick-2')); });
      queueMicrotask(say('microtask-2'));
      process.nextTick(say('tick-1'));
    }, 1);
    setTimeout(say('timer-2'), 1);
    setImmediate(() => { say('immediate-1')(); setImmediate(say('immediate-3')); });
    setImmediate(say('immediate-2'));
    spin(3);
  },
  'timer-from-an-immediate': () => {
    setImmediate(() => {
      say('immediate-1')();
      setTimeout(say('timer'), 0);
      setImmediate(say('immediate-2'));
      spin(3);
    });
  },
};

scenarios[process.argv[2]]();
