// Writes lines as C's standard output does when it is no terminal: in blocks of 4096 bytes, whose borders cut lines.
// write-lines.js FOLDER LINES PER_SECOND: so many lines, and then FOLDER/done-INSTANCE. Line n of instance i is `i n xxx…`
// with 10 + 7n mod 113 times x, so that a reader knows what it must be.

'use strict';

const fs = require('node:fs');
const path = require('node:path');

const [folder, lines, perSecond] = process.argv.slice(2);
const instance = process.env.NODE_APP_INSTANCE;
const BLOCK = 4096;
const born = performance.now();
let written = 0;
let waiting = '';

function tick() {
  const due = Math.min(Number(lines), Math.floor(((performance.now() - born) / 1000) * Number(perSecond)));
  for (; written < due; written += 1) {
    waiting += `${instance} ${written} ${'x'.repeat(10 + ((7 * written) % 113))}\n`;
  }
  const isLast = written === Number(lines);
  const length = isLast ? waiting.length : waiting.length - (waiting.length % BLOCK);
  for (let at = 0; at < length; at += BLOCK) {
    process.stdout.write(waiting.slice(at, Math.min(at + BLOCK, length)));
  }
  waiting = waiting.slice(length);
  if (isLast) {
    clearInterval(timer);
    fs.writeFileSync(path.join(folder, `done-${instance}`), '');
  }
}

const timer = setInterval(tick, 10);
// It lives on, so that no restart writes the lines again.
setInterval(() => {}, 1000);
